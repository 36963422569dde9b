"""The options of timm's train.py and validate.py: honoured, or refused with what to use instead."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from resmlp_mt.errors import UserError
from resmlp_mt.vision import checkpoints, create_model, evaluate, load_weights, recipe, train
from resmlp_mt.vision.evaluation_options import EvaluationOptions, PredictionOptions
from resmlp_mt.vision.factory import build_model
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.model import ResMLP
from resmlp_mt.vision.options import Parser, parse
from resmlp_mt.vision.timm_options import ANSWERS, answer
from resmlp_mt.vision.training_arguments import create_parser, parse_args
from vision_checkpoints import checkpoint, folder, run_json

#: the options of timm 1.0's scripts, by script
TRAIN = """
    --data-dir --dataset --train-split --val-split --train-num-samples --val-num-samples
    --dataset-download --class-map --input-img-mode --input-key --target-key
    --dataset-trust-remote-code --model --pretrained --pretrained-path --initial-checkpoint --resume
    --no-resume-opt --num-classes --gp --img-size --in-chans --input-size --crop-pct --mean --std
    --interpolation -b --batch-size -vb --validation-batch-size --channels-last --fuser
    --grad-accum-steps --grad-checkpointing --fast-norm --model-kwargs --head-init-scale
    --head-init-bias --torchcompile-mode --torchscript --torchcompile --device --amp --amp-dtype
    --amp-impl --model-dtype --no-ddp-bb --synchronize-step --local_rank --device-modules --opt
    --opt-eps --opt-betas --momentum --weight-decay --clip-grad --clip-mode --layer-decay
    --layer-decay-min-scale --layer-decay-no-opt-scale --opt-kwargs --sched --sched-on-updates --lr
    --lr-base --lr-base-size --lr-base-scale --lr-noise --lr-noise-pct --lr-noise-std --lr-cycle-mul
    --lr-cycle-decay --lr-cycle-limit --lr-k-decay --warmup-lr --min-lr --epochs --epoch-repeats
    --start-epoch --decay-milestones --decay-epochs --warmup-epochs --warmup-prefix
    --cooldown-epochs --patience-epochs --decay-rate --dr --no-aug --train-crop-mode --scale --ratio
    --hflip --vflip --color-jitter --color-jitter-prob --grayscale-prob --gaussian-blur-prob --aa
    --aug-repeats --aug-splits --jsd-loss --bce-loss --bce-sum --bce-target-thresh --bce-pos-weight
    --reprob --remode --recount --resplit --mixup --cutmix --cutmix-minmax --mixup-prob
    --mixup-switch-prob --mixup-mode --mixup-off-epoch --smoothing --train-interpolation --drop
    --drop-connect --drop-path --drop-block --bn-momentum --bn-eps --sync-bn --dist-bn --split-bn
    --model-ema --model-ema-force-cpu --model-ema-decay --model-ema-warmup --seed --worker-seeding
    --log-interval --val-interval --recovery-interval --checkpoint-hist -j --workers --save-images
    --pin-mem --no-prefetcher --output --experiment --eval-metric --tta --use-multi-epochs-loader
    --log-wandb --wandb-project --wandb-tags --wandb-resume-id --naflex-loader
    --naflex-train-seq-lens --naflex-max-seq-len --naflex-patch-sizes --naflex-patch-size-probs
    --naflex-loss-scale --kd-model-name --kd-distill-type --kd-loss-type --distill-loss-weight
    --task-loss-weight --kd-temperature --kd-student-feature-dim --kd-teacher-feature-dim
    --kd-token-distill-type -c --config
""".split()
VALIDATE = """
    --data-dir --dataset --split --num-samples --dataset-download --class-map --input-key
    --input-img-mode --target-key --dataset-trust-remote-code --model -m --pretrained -j --workers
    -b --batch-size --img-size --in-chans --input-size --use-train-size --crop-pct --crop-mode
    --crop-border-pixels --mean --std --interpolation --num-classes --gp --log-freq --checkpoint
    --num-gpu --test-pool --no-prefetcher --pin-mem --channels-last --device --amp --amp-dtype
    --model-dtype --tf-preprocessing --use-ema --fuser --fast-norm --reparam --model-kwargs
    --torchcompile-mode --torchscript --torchcompile --aot-autograd --results-file --results-format
    --real-labels --valid-labels --retry --seed --metrics-avg --naflex-loader --naflex-max-seq-len
""".split()


def validation() -> Parser:
    return Parser("evaluate", EvaluationOptions, "")


def test_every_option_of_timm_is_honoured_or_answered(capsys: pytest.CaptureFixture[str]) -> None:
    for parser, names in ((create_parser(), TRAIN), (validation(), VALIDATE)):
        for name in names:
            if name in parser._option_string_actions:
                continue
            with pytest.raises(UserError) as caught:
                parser.parse_args([name, "1"])
            assert str(caught.value).count("\n") == 0
            assert f": {answer(name)} (--help" in capsys.readouterr().err, name


def test_an_answer_is_for_an_option_that_some_command_lacks() -> None:
    both = create_parser()._option_string_actions.keys() & validation()._option_string_actions
    assert not both & {flag for flags in ANSWERS for flag in flags.split()}


def trainer_parts(*words: object) -> tuple[Any, Any]:
    options = parse_args(["--data", "x", *map(str, words)])
    return options, recipe.create_optimizer(options, create_model("resmlp_tiny", 2))


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("--sched step --decay-epochs 3 --decay-rate 0.5", {"decay_epochs": 3, "decay_rate": 0.5}),
        ("--sched step --decay-epochs 2 --dr 0.3", {"decay_epochs": 2, "decay_rate": 0.3}),
        ("--sched multistep --decay-milestones 2 5", {"decay_milestones": [2, 5]}),
        ("--lr-cycle-limit 2 --lr-cycle-mul 1.5 --lr-cycle-decay 0.6",
         {"cycle_limit": 2, "cycle_mul": 1.5, "cycle_decay": 0.6}),
        ("--lr-k-decay 0.7 --cooldown-epochs 3", {"k_decay": 0.7, "cooldown_epochs": 3}),
        ("--warmup-epochs 4 --warmup-prefix", {"warmup_epochs": 4, "warmup_prefix": True}),
        ("--lr-noise 0.2 0.8 --lr-noise-pct 0.5 --lr-noise-std 0.3 --seed 7",
         {"noise": [0.2, 0.8], "noise_pct": 0.5, "noise_std": 0.3, "noise_seed": 7}),
    ],
)  # fmt: skip
def test_schedules_are_timms(words: str, arguments: dict[str, Any]) -> None:
    options, optimizer = trainer_parts("--epochs", 8, *words.split())
    found, epochs = recipe.create_scheduler(options, optimizer, 10)
    same = torch.optim.AdamW(create_model("resmlp_tiny", 2).parameters(), lr=1e-3)
    usual = {"sched": options.sched, "warmup_epochs": 5, "warmup_lr": 1e-6, "min_lr": 1e-6}
    expected, total = timm.scheduler.create_scheduler_v2(same, num_epochs=8, **usual | arguments)
    assert epochs == total
    for epoch in range(total + 1):
        found.step(epoch)
        expected.step(epoch)
        assert optimizer.param_groups[0]["lr"] == same.param_groups[0]["lr"], epoch


def test_optimizers_take_their_options() -> None:
    _, optimizer = trainer_parts("--opt-eps", 1e-5, "--opt-betas", 0.8, 0.95)
    assert (optimizer.defaults["eps"], optimizer.defaults["betas"]) == (1e-5, (0.8, 0.95))
    _, optimizer = trainer_parts()
    assert (optimizer.defaults["eps"], optimizer.defaults["betas"]) == (1e-8, (0.9, 0.999))


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ("--opt sgd --lr-base 0.1", 0.1 * 1024 / 256),
        ("--opt adamw --lr-base 0.1", 0.1 * math.sqrt(1024 / 256)),
        ("--opt lamb --lr-base 0.1 --lr-base-scale linear --lr-base-size 512", 0.1 * 1024 / 512),
        ("--opt sgd --lr-base 0.1 --lr 0.3", 0.3),
        ("--opt sgd", 1e-3),
        ("--data digits", 3e-3),
        ("--data digits --lr-base 0.1 --opt sgd", 0.1 * 1024 / 256),
    ],
)
def test_the_learning_rate_grows_with_the_batch(words: str, rate: float) -> None:
    options, _ = trainer_parts("--lr", 1)
    options = parse_args(["--data", "x", *words.split()])
    assert recipe.learning_rate(options, 1024) == pytest.approx(rate)


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("mixup", [0, 1])
def test_binary_cross_entropy(total: bool, threshold: float | None, mixup: int) -> None:
    words: list[object] = ["--bce-loss", "--bce-pos-weight", 2, "--mixup", mixup]
    words += ["--bce-sum"] if total else []
    words += ["--bce-target-thresh", threshold] if threshold else []
    options, _ = trainer_parts(*words)
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    labels = torch.tensor([0, 2])
    targets = 0.9 * nn.functional.one_hot(labels, 3) + 0.1 / 3
    if mixup:  # two labels for every image, smoothed before
        targets = 0.3 * targets + 0.7 * targets.flip(0)
    loss = recipe.create_loss(options, None)(torch.empty(0), logits, targets if mixup else labels)
    if threshold:
        targets = (targets > threshold).float()
    right, wrong = logits.sigmoid().log(), (-logits).sigmoid().log()
    terms = -(2 * targets * right + (1 - targets) * wrong)
    torch.testing.assert_close(loss, terms.sum(1).mean() if total else terms.mean())


def test_colours_may_be_taken_away() -> None:
    options, _ = trainer_parts("--grayscale-prob", 1, "--color-jitter", 0, "--img-size", 40)
    config = {"input_size": (3, 40, 40), "mean": options.mean, "std": options.std}
    transform = recipe.training_transform(options, config, "bicubic")
    found: Any = transform(Image.new("RGB", (60, 50), (200, 100, 0)))
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, with the splits train and test."""
    root = folder(tmp_path_factory.mktemp("images"), "train", cat=6, dog=6)
    return folder(root, "test", cat=2, dog=2)


def test_a_training_with_timms_options(images: Path, tmp_path: Path) -> None:
    words = """--model resmlp_tiny.fb_in1k --img-size 8 --patch-size 4 -b 4 -j 0 --epochs 2
        --warmup-epochs 0 --cooldown-epochs 1 --num-classes 2 --val-split test --lr-base 0.1
        --cutmix-minmax 0.2 0.8 --mixup-off-epoch 2 --no-prefetcher""".split()
    output = tmp_path / "out"
    train.main([str(images), *words, "--output", str(output)])
    saved = checkpoints.load(output / "last.pth")
    assert [row["epoch"] for row in saved["history"]] == [0, 1, 2]  # one to cool down
    assert saved["history"][0]["lr"] == 0.1 * math.sqrt(4 / 256)
    again = parse_args(["--resume", str(output / "last.pth")])
    assert (again.lr, again.lr_base, again.val_split, again.cutmix_minmax) == (
        0.0125, 0.1, "test", [0.2, 0.8],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--torchcompile-mode default", "needs --torchcompile"),
        ("--torchcompile --torchcompile-mode fast", "--torchcompile-mode fast: Unrecognized mode"),
        ("--num-classes 3", "--num-classes 3: --data has 2 classes"),
        ("--val-split valid", "there is no folder .*val"),
        ("--sched never", "--sched never: "),
        ("--opt sgd --opt-betas 0.9", "--opt sgd: it takes 0 --opt-betas, not 1"),
        ("--opt-betas 0.9 0.9 0.9", "--opt adamw: it takes 2 --opt-betas, not 3"),
        ("--opt sgd --opt-eps 1", "--opt sgd: it takes no --opt-eps"),
        ("--cutmix-minmax 0.2 0.8 -b 5", "need an even --batch-size"),
        ("--lr-noise 0.1 0.2 0.3", "--lr-noise takes one share of the epochs, or two"),
    ],
)
def test_mistakes_in_them_are_one_sentence(
    images: Path, tmp_path: Path, words: str, message: str
) -> None:
    small = "--img-size 8 --patch-size 4 -b 4 -j 0 --val-split test".split()
    with pytest.raises(UserError, match=message) as caught:
        train.main([str(images), *small, "--output", str(tmp_path / "o"), *words.split()])
    assert "\n" not in str(caught.value)


def test_a_configuration_of_timm_is_read(tmp_path: Path) -> None:
    path = tmp_path / "args.yaml"
    path.write_text(
        "data_dir: x\nlog_wandb: false\ngp: null\nno_prefetcher: false\nno_aug: false\n"
        "bce_loss: true\ninitial_checkpoint: w.pth\nwandb_tags: []\nopt_betas: [0.9, 0.95]\n"
    )
    options = parse_args(["-c", str(path)])
    assert (options.data, options.weights, options.bce_loss) == (["x"], "w.pth", True)
    assert (options.opt_betas, options.aug) == ([0.9, 0.95], True)
    path.write_text("log_wandb: true")
    with pytest.raises(UserError, match=r"--log-wandb is an option of timm .*: use --tensorboard"):
        parse_args(["-c", str(path)])


def test_validation_is_called_as_timms(images: Path, tmp_path: Path) -> None:
    best = checkpoint(tmp_path / "best.pth")
    data = ["--data-dir", "digits", "-b", 200, "-j", 0]
    plain = run_json(evaluate.main, tmp_path / "1.json", best, *data)
    named = run_json(
        evaluate.main, tmp_path / "2.json", "--checkpoint", best, "--split", "validation", *data
    )
    assert named["top1"] == plain["top1"]
    changed = ["--mean", 0.1, 0.2, 0.3, "--std", 1, 1, 1, "--interpolation", "nearest"]
    other = run_json(evaluate.main, tmp_path / "3.json", best, *data, *changed)
    config = plain["data_config"] | {
        "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "interpolation": "nearest",
    }  # fmt: skip
    assert other["data_config"] == config
    assert other["top1"] != plain["top1"]

    found = parse(
        validation(),
        EvaluationOptions,
        [str(images), "-m", "resmlp_tiny", "--checkpoint", "w.pth", "--split", "test"],
    )
    assert (found.data, found.checkpoint, found.weights) == ([str(images)], None, "w.pth")
    found = parse(validation(), EvaluationOptions, [str(images), "--checkpoint", str(best)])
    assert (found.data, found.checkpoint, found.weights) == ([str(images)], best, None)
    words = ["photo.jpg", "more", "--checkpoint", str(best)]
    labels = parse(Parser("predict", PredictionOptions, ""), PredictionOptions, words)
    assert (labels.inputs, labels.checkpoint) == ([Path("photo.jpg"), Path("more")], best)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_a_folder_of_the_hub(tmp_path: Path, name: str) -> None:
    sizes: dict[str, Any] = {"num_classes": 3, "img_size": 8, "patch_size": 4}
    source, target = (create_model("resmlp_tiny", **sizes) for _ in range(2))
    with pytest.raises(UserError, match=r"is a folder without model.safetensors or pytorch_model"):
        load_weights(target, tmp_path)
    timm.models.save_for_hf(source, str(tmp_path), safe_serialization=name.endswith("safetensors"))
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] == [name]
    load_weights(target, tmp_path)
    assert torch.equal(target.head.weight, source.head.weight)


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    model = create_model("resmlp_tiny", num_classes=3)
    torch.jit.script(model).save(tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model.pt is a TorchScript program: save .*state_dict"):
        load_weights(model, tmp_path / "model.pt")


def test_names_with_the_tag_of_their_weights_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    made = timm.create_model("resmlp_12_224", num_classes=2, img_size=32)
    asked = []

    def create(name: str, **_: Any) -> nn.Module:
        asked.append(name)
        return made

    monkeypatch.setattr(timm, "create_model", create)
    for name in ("resmlp_12_224.fb_dino", "resmlp_s12.fb_dino"):
        model = build_model(name, 2, pretrained=True, img_size=32)
        assert isinstance(model, ResMLP)
        assert torch.equal(model.head.weight, made.head.weight)
    assert asked == ["resmlp_12_224.fb_dino"] * 2


@pytest.mark.parametrize("name", ["ResMLP-S12", "RESMLP_S12", "resmlp-s12", "resmlp_12_dist"])
def test_spellings_of_the_paper_lead_to_a_model(name: str) -> None:
    with pytest.raises(UserError, match=r"did you mean resmlp_s12"):
        build_model(name, 10)
