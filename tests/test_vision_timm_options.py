"""The options of timm's scripts: honoured, or refused with what to use instead."""

import argparse
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from resmlp_mt.errors import UserError
from resmlp_mt.vision import (
    checkpoints,
    create_model,
    evaluate,
    load_weights,
    train,
    training_parts,
)
from resmlp_mt.vision.evaluation_options import (
    EvaluationOptions,
    ExportOptions,
    NeighbourOptions,
    PredictionOptions,
    parse,
)
from resmlp_mt.vision.factory import build_model
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.model import ResMLP
from resmlp_mt.vision.options import ANSWERS, Parser, answer
from resmlp_mt.vision.training_arguments import create_parser, parse_args
from vision_checkpoints import MEAN, STD, checkpoint, folder, run_json

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
INFERENCE = """
    --data-dir --dataset --split --model -m -j --workers -b --batch-size --img-size --in-chans
    --input-size --use-train-size --crop-pct --crop-mode --mean --std --interpolation --num-classes
    --class-map --log-freq --checkpoint --pretrained --num-gpu --test-pool --channels-last --device
    --amp --amp-dtype --model-dtype --fuser --model-kwargs --torchcompile-mode --torchscript
    --torchcompile --aot-autograd --results-dir --results-file --results-format
    --results-separate-col --topk --fullname --filename-col --index-col --label-col --output-col
    --output-type --label-type --include-index --exclude-output --no-console-results
""".split()


KINDS = {
    "evaluate": EvaluationOptions,
    "knn": NeighbourOptions,
    "predict": PredictionOptions,
    "export": ExportOptions,
}
PARSERS = {
    "train": create_parser(),
    **{name: Parser(name, kind, "") for name, kind in KINDS.items()},
}
KNOWN = {name: parser._option_string_actions for name, parser in PARSERS.items()}


def test_an_older_timm_has_fewer_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    options, optimizer = trainer_parts("--sched", "wsd")
    none = lambda *_, **__: (None, 100)  # noqa: E731  (what timm 1.0.20 returns)
    monkeypatch.setattr(timm.scheduler, "create_scheduler_v2", none)
    with pytest.raises(UserError, match="--sched wsd needs a newer timm than "):
        training_parts.create_scheduler(options, optimizer, 10)


def test_several_processes_are_for_training_alone() -> None:
    for flag in ("--world-size", "--local-rank"):
        assert "torchrun" in (answer(flag, KNOWN["train"]) or "")
        assert (answer(flag, KNOWN["evaluate"]) or "").endswith("leave it out")


@pytest.mark.parametrize(
    ("command", "names"), [("train", TRAIN), ("evaluate", VALIDATE), ("predict", INFERENCE)]
)
def test_every_option_of_timm_is_honoured_or_answered(
    command: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for given in names:
        name = given.replace("_", "-")
        if name not in KNOWN[command]:
            with pytest.raises(UserError) as caught:
                PARSERS[command].parse_args([given, "1"])
            assert str(caught.value).count("\n") == 0
            assert f": {answer(name, KNOWN[command])} (--help" in capsys.readouterr().err, name


def test_every_command_takes_underscores_and_suggests_options() -> None:
    for kind in KINDS.values():
        words = ["--img_size", "8", "-m", "x", "--model_kwargs", "a_b=1", "--weights=a_b"]
        found = parse(kind, words, "evaluate", "")
        assert (found.img_size, found.weights) == (8, "a_b")
        assert found.model_kwargs == {"a_b": 1}
        with pytest.raises(UserError, match=r"--img-sise.*; did you mean --img-size"):
            parse(kind, ["best.pth", "--img_sise", "8"], "evaluate", "")


def test_an_answer_is_for_an_option_that_some_command_lacks() -> None:
    both = set.intersection(*(set(KNOWN[name]) for name in ("train", "evaluate", "predict")))
    assert not both & ANSWERS.keys()


@pytest.mark.parametrize("command", KNOWN)
def test_an_answer_names_options_of_the_command_alone(command: str) -> None:
    known = KNOWN[command]
    for flag in ANSWERS.keys() - known.keys():
        found = answer(flag, known)
        assert found is not None
        _, _, instead = found.partition("lacks: ")
        assert instead
        assert {*re.findall(r"--[a-z][a-z-]*", instead)} <= known.keys(), flag


def trainer_parts(*words: object) -> tuple[Any, Any]:
    options = parse_args(["--data", "x", *map(str, words)])
    return options, training_parts.create_optimizer(options, create_model("resmlp_tiny", 2))


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
        ("--sched wsd --lr-decay-fn cosine", {"decay_fn": "cosine"}),
        ("--sched rsqrt --lr-stable-timescale 2 --cooldown-epochs 1",
         {"stable_timescale": 2, "cooldown_epochs": 1}),
    ],
)  # fmt: skip
def test_schedules_are_timms(words: str, arguments: dict[str, Any]) -> None:
    options, optimizer = trainer_parts("--epochs", 8, *words.split())
    found, epochs = training_parts.create_scheduler(options, optimizer, 10)
    same = torch.optim.AdamW(create_model("resmlp_tiny", 2).parameters(), lr=1e-3)
    usual = {"sched": options.sched, "warmup_epochs": 5, "warmup_lr": 1e-6, "min_lr": 1e-6}
    expected, total = timm.scheduler.create_scheduler_v2(same, num_epochs=8, **usual | arguments)
    assert epochs == total
    for epoch in range(total + 1):
        found.step(epoch)
        expected.step(epoch)
        assert optimizer.param_groups[0]["lr"] == same.param_groups[0]["lr"], epoch


def test_a_schedule_is_given_no_option_that_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some versions of timm take no None in the place of a number."""
    options, optimizer = trainer_parts("--sched", "step")
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        timm.scheduler,
        "create_scheduler_v2",
        lambda _, **named: (object(), given.update(named) or 1),
    )
    training_parts.create_scheduler(options, optimizer, 10)
    assert given["sched"] == "step"
    assert None not in given.values()


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
    assert training_parts.learning_rate(options, 1024) == pytest.approx(rate)


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
    loss = training_parts.create_loss(options, None)(
        torch.empty(0), logits, targets if mixup else labels
    )
    if threshold:
        targets = (targets > threshold).float()
    right, wrong = logits.sigmoid().log(), (-logits).sigmoid().log()
    terms = -(2 * targets * right + (1 - targets) * wrong)
    torch.testing.assert_close(loss, terms.sum(1).mean() if total else terms.mean())


def test_colours_may_be_taken_away() -> None:
    options, _ = trainer_parts("--grayscale-prob", 1, "--color-jitter", 0, "--img-size", 40)
    config = {"input_size": (3, 40, 40), "mean": MEAN, "std": STD}
    transform = training_parts.training_transform(options, config)
    found: Any = transform(Image.new("RGB", (60, 50), (200, 100, 0)))
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, with the splits train and test."""
    root = folder(tmp_path_factory.mktemp("images"), "train", cat=6, dog=6)
    return folder(root, "test", cat=2, dog=2)


def test_a_training_with_timms_options(images: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncat\nbird\n")
    words = """--model resmlp_tiny --img-size 8 --patch-size 4 -b 4 -j 0 --epochs 2
        --warmup-epochs 0 --cooldown-epochs 1 --num-classes 3 --val-split test --lr-base 0.1
        --cutmix-minmax 0.2 0.8 --mixup-off-epoch 2 --no-prefetcher""".split()
    output = tmp_path / "out"
    words += ["--class-map", str(tmp_path / "classes.txt")]
    train.main([str(images), *words, "--output", str(output)])
    saved = checkpoints.load(output / "last.pth")
    assert saved["classes"] == ["dog", "cat", "bird"]
    assert [row["epoch"] for row in saved["history"]] == [0, 1, 2]  # one to cool down
    assert saved["history"][0]["lr"] == 0.1 * math.sqrt(4 / 256)
    again = parse_args(["--resume", str(output / "last.pth")])
    with pytest.raises(UserError, match="--data digits names its classes itself"):
        train.main(["--data", "digits", *words[-2:], "--output", str(tmp_path / "digits")])
    assert parse_args(["--class-map", ""]).class_map is None  # timm's default
    assert (again.lr, again.lr_base, again.val_split, again.cutmix_minmax) == (
        0.0125, 0.1, "test", [0.2, 0.8],
    )  # fmt: skip


def test_a_class_map_chooses_classes_and_may_lie_beside_them(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in timm; evaluate takes the checkpoint's choice, or a map for weights."""
    caplog.set_level("INFO")
    data, output = tmp_path / "data", tmp_path / "out"
    shutil.copytree(images, data)
    folder(folder(data, "train", bird=4), "test", bird=3)
    (data / "two.txt").write_text("dog\ncat\n")
    sizes = "--model resmlp_tiny --img-size 8 --patch-size 4".split()
    words = [*sizes, *"-b 4 -j 0 --epochs 1 --val-split test --class-map two.txt".split()]
    train.main([str(data), *words, "--output", str(output)])
    assert "1 of 3 classes are not in --class-map, and are left out (bird)" in caplog.text
    assert checkpoints.load(output / "last.pth")["classes"] == ["dog", "cat"]
    report = run_json(evaluate.main, tmp_path / "r.json", output / "best.pth")
    assert report["images"] == 4
    assert "1 of 3 classes are not in the class map of the training, and are left" in caplog.text
    other = folder(tmp_path / "other", "test", bird=3)
    with pytest.raises(UserError, match=r"none of the classes of the class map of the training, b"):
        evaluate.main([str(output / "best.pth"), "--data", str(other)])
    torch.save(checkpoints.load(output / "best.pth")["model"], tmp_path / "w.pth")
    words = [*sizes, "--weights", tmp_path / "w.pth", "--class-map", "two.txt", "--data", data]
    found = run_json(evaluate.main, tmp_path / "r.json", *words, "--split", "test")
    assert (found["images"], found["top1"]) == (4, report["top1"])


def test_what_changes_nothing_is_taken_as_in_a_file() -> None:
    """timm's defaults; other values are answered, and a folder may follow."""
    words = "--dist-bn reduce --eval-metric top1 --val_interval 1 --log-interval 9 --save-images"
    words += " --worker-seeding part --use-multi-epochs-loader --kd-temperature 4.0 --local_rank=0"
    options = parse_args([*words.split(), "images"])
    assert options == parse_args(["images"])
    for words, message in (
        ("--dist-bn broadcast", "--dist-bn is an option of timm .*: the statistics of"),
        ("--eval-metric=loss", "--eval-metric is .* best.pth has the best top-1 accuracy"),
        ("--val-interval 5", "--val-interval is .* saved after every epoch"),
    ):
        with pytest.raises(UserError, match=message):
            parse_args(["images", *words.split()])


def test_a_file_may_have_values_that_do_nothing(tmp_path: Path) -> None:
    """As in the args.yaml of timm before 1.0; flags are of the user, who wanted something."""
    path = tmp_path / "args.yaml"
    path.write_text(
        "sched: step\ncooldown_epochs: 10\ndecay_milestones: [30, 60]\naug_repeats: 3.0\n"
        "lr_cycle_limit: 2\nmixup_off_epoch: 5\nremode: const\nlr: 0.1\nlr_base_size: 512\n"
    )
    options = parse_args(["x", "-c", str(path)])
    assert (options.cooldown_epochs, options.decay_milestones) == (10, [30, 60])
    assert options.aug_repeats == 3
    assert type(options.aug_repeats) is int
    for words, message in (
        ("--cooldown-epochs 5", "--sched step does not use --cooldown-epochs"),
        ("--sched plateau --warmup-prefix", "--sched plateau does not use --warmup-prefix"),
        ("--recount 2", "--recount needs --reprob"),
        ("--aug-repeats 2.5", "--aug-repeats: invalid whole value: '2.5'"),
        ("--aug-repeats inf", "--aug-repeats: invalid whole value: 'inf'"),
        ("--aug-repeats x", "--aug-repeats: invalid whole value: 'x'"),
    ):
        with pytest.raises(UserError, match=message):
            parse_args(["x", "-c", str(path), *words.split()])
    path.write_text("distillation_alpha: 0.9")
    with pytest.raises(UserError, match="--distillation-alpha needs --distillation-type"):
        parse_args(["x", "-c", str(path)])


def test_a_folder_after_a_list_is_named(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for words in ("--img-size 224", "--opt-betas 0.9", "--lr-noise 0.1", "--model-kwargs a=1"):
        with pytest.raises(UserError, match=f"; give {folder} before the options"):
            parse_args([*words.split(), folder])
        with pytest.raises(UserError, match=r"'nowhere' \(--help"):
            parse_args([*words.split(), "nowhere"])
    with pytest.raises(UserError, match=f"; give {folder} before the options"):
        parse(NeighbourOptions, ["-k", "1", "5", folder], "knn", "")
    with pytest.raises(UserError, match=r"invalid int value: '.*' \(--help"):
        parse_args(["--img-size", folder])


def test_empty_values_leave_options_out_as_in_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = parse_args(["x", "--resume", "", "--config="])
    assert (options.resume, options.config) == (None, None)
    words = [str(tmp_path), "-m", "resmlp_12_224", "--pretrained", "--checkpoint", ""]
    assert parse(EvaluationOptions, words, "evaluate", "").weights is None
    best = str(checkpoint(tmp_path / "best.pth"))
    found = parse(PredictionOptions, [best, "a.jpg", "--checkpoint="], "predict", "")
    assert (found.checkpoint, found.inputs) == (Path(best), [Path("a.jpg")])
    for flag in ("--val-split", "--train-split"):
        with pytest.raises(UserError, match=f"{flag}: expected a part of the data, or . for all"):
            parse_args(["x", flag, ""])
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()  # a name that a recipe has too
    assert parse_args(["x", "-c", "digits"]).model_ema


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--torchcompile-mode default", "needs --torchcompile"),
        ("--torchcompile --torchcompile-mode fast", "--torchcompile-mode fast: Unrecognized mode"),
        ("--num-classes 3", "--num-classes 3: --data has 2 classes"),
        ("--val-split valid", "there is no folder .*val"),
        ("--sched never", "argument --sched: invalid choice"),
        ("--opt sgd --opt-betas 0.9", "--opt sgd: it takes 0 --opt-betas, not 1"),
        ("--opt-betas 0.9 0.9 0.9", "--opt adamw: it takes 2 --opt-betas, not 3"),
        ("--opt sgd --opt-eps 1", "--opt sgd: it takes no --opt-eps"),
        ("--cutmix-minmax 0.2 0.8 -b 5", "need an even --batch-size"),
        ("--lr-noise 0.1 0.2 0.3", "--lr-noise takes one share of the epochs, or two"),
        ("--sched step --cooldown-epochs 2", "--sched step does not use --cooldown-epochs"),
        ("--sched none --cooldown-epochs 2", "--sched none does not use --cooldown-epochs"),
        ("--sched plateau --warmup-prefix", "--sched plateau does not use --warmup-prefix"),
        ("--sched poly --lr-decay-fn exp", "--sched poly does not use --lr-decay-fn"),
        ("--sched wsd --lr-decay-fn x", "--sched wsd: Invalid decay_fn"),
        ("--bce-sum", "--bce-sum needs --bce-loss"),
        ("--bce-target-thresh 0.2", "--bce-target-thresh needs --bce-loss"),
        ("--bce-pos-weight 2", "--bce-pos-weight needs --bce-loss"),
        ("--mixup-off-epoch 2", "--mixup-off-epoch needs --mixup or --cutmix"),
        ("--lr-base-scale sqrt", "--lr-base-scale needs --lr-base"),
        ("--lr-base-size 512", "--lr-base-size needs --lr-base"),
        ("--reset-head", "--reset-head needs --weights or --pretrained"),
        ("--clip-mode agc", "--clip-mode needs --clip-grad"),
        ("--model-ema-warmup", "--model-ema-warmup needs --model-ema"),
        ("--model-ema-decay 0.9", "--model-ema-decay needs --model-ema"),
        ("--lr-noise-pct 0.5", "--lr-noise-pct needs --lr-noise"),
        ("--lr-noise-std 0.5", "--lr-noise-std needs --lr-noise"),
        ("--color-jitter 0 --color-jitter-prob 0.5", "--color-jitter-prob needs --color-jitter"),
        ("--aa v0 --color-jitter 0.3", "--aa v0 does not use --color-jitter: leave it out"),
        ("--aa rand-m9 --color-jitter-prob 0.5", "--aa rand-m9 does not use --color-jitter-prob"),
        ("--remode rand", "--remode needs --reprob"),
        ("--recount 2", "--recount needs --reprob"),
        ("--mixup-prob 0.5", "--mixup-prob needs --mixup or --cutmix"),
        ("--mixup-mode elem", "--mixup-mode needs --mixup or --cutmix"),
        ("--mixup 1 --mixup-switch-prob 0.2", "--mixup-switch-prob needs --mixup and --cutmix"),
        ("--distillation-alpha 0.9", "--distillation-alpha needs --distillation-type"),
        ("--distillation-tau 3", "--distillation-tau needs --distillation-type soft"),
        ("--decay-rate 0.5", "--sched cosine does not use --decay-rate"),
        ("--decay-milestones 2", "--sched cosine does not use --decay-milestones"),
        ("--patience-epochs 2", "--sched cosine does not use --patience-epochs"),
        ("--sched step --lr-cycle-mul 2", "--sched step does not use --lr-cycle-mul"),
        ("--sched tanh --lr-k-decay 2", "--sched tanh does not use --lr-k-decay"),
        ("--cutmix-minmax 0.8 0.2", r"--cutmix-minmax 0.8 0.2 leaves no choice .* 8 x 8 pixels"),
        ("--cutmix-minmax 0.5 0.6", r"--cutmix-minmax 0.5 0.6 leaves no choice"),
        ("--model resmlp_s12.nothing", "there are no weights with the tag 'nothing'.*fb_in1k"),
        ("--opt-kwargs opt=sgd", "--opt-kwargs opt=... has an option of its own: use --opt"),
        ("--opt-kwargs foreach=False weight_decay=1", "weight_decay=.*: use --weight-decay"),
        ("--opt-kwargs betas=(0.9,0.9)", "betas=.*: use --opt-betas"),
        ("--opt-kwargs eps=1", "eps=.*: use --opt-eps"),
        ("--model resmlp_tiny.fb_in1k", "no weights with the tag 'fb_in1k'; its tags: none"),
    ],
)
def test_mistakes_in_them_are_one_sentence(
    images: Path, tmp_path: Path, words: str, message: str
) -> None:
    small = "--img-size 8 --patch-size 4 -b 4 -j 0 --val-split test".split()
    with pytest.raises(UserError, match=message) as caught:
        train.main([str(images), *small, "--output", str(tmp_path / "o"), *words.split()])
    assert "\n" not in str(caught.value)


def test_timms_own_args_yaml_is_read(tmp_path: Path) -> None:
    """It has every option of timm's train.py at its default."""
    path = Path(__file__).parent / "fixtures/timm_args.yaml"
    options = parse_args(["-c", str(path)])
    found = (options.data, options.model, options.val_split, options.sched, options.epochs)
    assert found == (["images"], "resmlp_12_224", "validation", "cosine", 300)
    assert (options.lr, options.lr_base, options.lr_base_scale) == (None, 0.1, None)
    assert (options.output, options.weights) == (parse_args([]).output, None)
    for name, value, message in (
        ("eval_metric", "loss", "best.pth has the best top-1 accuracy"),
        ("val_interval", 5, "saved after every epoch"),
        ("resume", "last.pth.tar", "there is no option resume"),
        ("kd_temperature", 2.0, "use --teacher"),
    ):
        lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{name}:")]
        changed = tmp_path / "args.yaml"
        changed.write_text("\n".join([*lines, f"{name}: {value}"]))
        with pytest.raises(UserError, match=message):
            parse_args(["-c", str(changed)])


def test_a_value_is_not_false(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for key, word, value in (
        ("hflip", "off", "false"), ("smoothing", "no", "false"), ("color_jitter", "false", "false"),
        ("warmup-epochs", "false", "false"), ("aa", "on", "true"), ("lr_noise", "yes", "true"),
        ("model_kwargs", "no", "false"),
    ):  # fmt: skip
        path.write_text(f"{key}: {word}")
        name = key.replace("-", "_")
        with pytest.raises(UserError, match=rf"c.yaml: {name} takes a value, not {value} \(YAML"):
            parse_args(["-c", str(path)])
    path.write_text("no_prefetcher: no\ntorchcompile: off\nmodel_ema: off\nno_aug: on\namp: on")
    options = parse_args(["-c", str(path)])
    assert (options.torchcompile, options.model_ema, options.aug, options.amp) == (
        None, False, False, True,
    )  # fmt: skip


def test_the_upper_learning_rate_wins(tmp_path: Path) -> None:
    """lr and lr_base are two ways to say the same."""
    (tmp_path / "base.yaml").write_text("lr: 0.5")
    (tmp_path / "child.yaml").write_text("base: base.yaml\nlr-base: 0.1")
    (tmp_path / "both.yaml").write_text("base: child.yaml\nlr: 0.2")
    for words, rate, base in (
        ("-c base.yaml", 0.5, None),
        ("-c base.yaml --lr-base 0.3", None, 0.3),
        ("-c base.yaml --lr-base 0.3 --lr 0.7", 0.7, 0.3),
        ("-c child.yaml", None, 0.1),
        ("-c child.yaml --lr 0.7", 0.7, 0.1),
        ("-c both.yaml", 0.2, 0.1),
        ("-c base.yaml --lr_base 0.3", None, 0.3),
        ("-c base.yaml --lr_base=0.3", None, 0.3),
    ):
        options = parse_args(["--data", "x", *words.replace("-c ", f"-c {tmp_path}/").split()])
        assert (options.lr, options.lr_base) == (rate, base), words


def test_a_checkpoint_of_timms_trainer_is_not_resumed_but_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "last.pth.tar"
    torch.save({"epoch": 3, "state_dict": {}, "args": argparse.Namespace(lr=1.0)}, path)
    for command, words in ((train, ["--resume", path]), (evaluate, [path])):
        with pytest.raises(UserError, match="model is missing; weights from elsewhere go to --wei"):
            command.main([*map(str, words)])


def test_weights_without_a_model_are_named(tmp_path: Path) -> None:
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "bare.pth")
    for words, message in (
        (("--weights", "timm:resmlp_12_224"), "--weights timm:resmlp_12_224 needs --model NAME"),
        (("--weights", tmp_path), "--weights .* needs --model NAME"),
        (("--weights", tmp_path / "bare.pth"), "go to --weights, with --model NAME"),
        (("nowhere", "-m", "resmlp_s12", "--weights", "w.pth"), "^nowhere cannot be read: No such"),
        (("nowhere", "--weights", tmp_path / "bare.pth"), "^nowhere cannot be read: No such"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate.main([*map(str, words)])


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

    words = [str(images), "-m", "resmlp_tiny", "--checkpoint", "w.pth", "--split", "test"]
    found = parse(EvaluationOptions, words, "evaluate", "")
    assert (found.data, found.checkpoint, found.weights) == ([str(images)], None, "w.pth")
    words = [str(images), "--checkpoint", str(best)]
    found = parse(EvaluationOptions, words, "evaluate", "")
    assert (found.data, found.checkpoint, found.weights) == ([str(images)], best, None)
    for words in ([str(best), str(images)], [str(images), str(best)]):
        found = parse(EvaluationOptions, words, "evaluate", "")
        assert (found.data, found.checkpoint) == ([str(images)], best)
    words = ["photo.jpg", "more", "--checkpoint", str(best)]
    labels = parse(PredictionOptions, words, "predict", "")
    assert (labels.inputs, labels.checkpoint) == ([Path("photo.jpg"), Path("more")], best)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_a_folder_of_the_hub(tmp_path: Path, name: str) -> None:
    sizes: dict[str, Any] = {"num_classes": 3, "img_size": 8, "patch_size": 4}
    source, target = (create_model("resmlp_tiny", **sizes) for _ in range(2))
    with pytest.raises(UserError, match=r"is a folder without model.safetensors or pytorch_model"):
        load_weights(target, tmp_path)
    timm.models.save_for_hf(source, str(tmp_path), safe_serialization=name.endswith("safetensors"))
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] == [name]
    cache = tmp_path / "models--timm--x"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "snapshots/0a1b").symlink_to(tmp_path)
    for given in (tmp_path, f"local-dir:{tmp_path}", cache, cache):
        target = create_model("resmlp_tiny", **sizes)
        load_weights(target, given)
        (cache / "snapshots/2c3d").mkdir(exist_ok=True)  # of an earlier or later revision
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs/main").write_text("0a1b\n")
        assert torch.equal(target.head.weight, source.head.weight)


def test_the_only_weights_in_a_folder_may_have_any_name(tmp_path: Path) -> None:
    source, target = (create_model("resmlp_tiny", num_classes=3) for _ in range(2))
    torch.save({"module": source.state_dict()}, tmp_path / "mp_rank_00_model_states.pt")
    load_weights(target, tmp_path)
    assert torch.equal(target.head.weight, source.head.weight)
    torch.save(source.state_dict(), tmp_path / "last.pth.tar")
    with pytest.raises(UserError, match=r"such as last\.pth\.tar, mp_rank_00_model_states\.pt\.$"):
        load_weights(target, tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_in_parts(tmp_path: Path, suffix: str) -> None:
    """Large files on the hub are in parts, with an index of the names in each."""
    source, target = (create_model("resmlp_tiny", num_classes=3) for _ in range(2))
    state, whole = source.state_dict(), "model" if suffix == "safetensors" else "pytorch_model"
    parts = {
        key: f"{whole}-0000{1 + index % 2}-of-00002.{suffix}" for index, key in enumerate(state)
    }
    for part in set(parts.values()):
        content = {key: value for key, value in state.items() if parts[key] == part}
        (save_file if suffix == "safetensors" else torch.save)(content, tmp_path / part)
    index = tmp_path / f"{whole}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    for given in (tmp_path, index):
        load_weights(target, given)
        assert torch.equal(target.patch_embed.proj.weight, source.patch_embed.proj.weight)
        target = create_model("resmlp_tiny", num_classes=3)
    (tmp_path / part).unlink()
    with pytest.raises(UserError, match=f"{part} cannot be read: No such file"):
        load_weights(target, tmp_path)
    for wrong in ("[]", '{"weight_map": {}}', '{"weight_map": {"head.bias": "a\\u0000b"}}'):
        index.write_text(wrong)
        with pytest.raises(UserError, match=r"is not the index of a file in parts"):
            load_weights(target, index)


def test_a_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    source, target = (create_model("resmlp_tiny", num_classes=3) for _ in range(2))
    save_file(source.state_dict(), tmp_path / "W.SAFETENSORS")
    load_weights(target, tmp_path / "W.SAFETENSORS")
    assert torch.equal(target.head.weight, source.head.weight)


def test_weights_that_timm_fetches_have_several_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    made, target = (timm.create_model("test_convnext", num_classes=3) for _ in range(2))
    made.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "label_names": ("a", "b", "c")}
    monkeypatch.setattr(timm, "create_model", lambda name, **_: asked.append(name) or made)
    names = "timm:test_convnext", "timm/test_convnext.r", "hf-hub:timm/test_convnext.r160_in1k"
    for name in names:
        assert load_weights(target, name).classes == ["a", "b", "c"]
        assert target.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    assert asked == ["test_convnext", "test_convnext.r", names[2]]
    with pytest.raises(
        UserError, match=r"hf-hub:x/y: .*: name its architecture, and give hf-hub:x"
    ):
        build_model("hf-hub:x/y", 3)


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


@pytest.mark.parametrize("prefix", ["timm/", "hf-hub:timm/", "hf_hub:timm/"])
def test_names_may_be_those_of_the_hub(prefix: str) -> None:
    name = f"{prefix}resmlp_12_224.fb_in1k"
    assert parse_args(["--model", name]).model == "resmlp_12_224.fb_in1k"
    found = parse(EvaluationOptions, ["-m", name, "--pretrained"], "evaluate", "")
    assert found.model == "resmlp_12_224.fb_in1k"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--wd 0.1", "--wd is an option of timm or another trainer .*: use --weight-decay"),
        ("--learning-rate 1", "--learning-rate is .*: use --lr "),
        ("--auto-augment x", "--auto-augment is .*: use --aa "),
        ("--test-only", "--test-only is .*: use python -m resmlp_mt.vision.evaluate"),
        ("--jsd", "--jsd-loss is .*: use --aug-repeats"),
        ("--repeated-aug", "--repeated-aug is .*: use --aug-repeats"),
        ("--ThreeAugment", "--ThreeAugment is .*: use --aa 3a"),
        ("--sched cosin", "argument --sched: invalid choice: 'cosin' .*'cosine'"),
        (
            "--config resmlp_s13",
            r"resmlp_s13 cannot be read: .*mean (resmlp_s\d\d) or (?!\1)resmlp_s\d\d or (?!\1)res",
        ),
    ],
)
def test_options_and_values_of_others_lead_to_ours(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_args(words.split())


def test_paths_of_options_may_begin_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In YAML, and behind an equals sign, no shell replaces it."""
    monkeypatch.setenv("HOME", "/home/me")
    names = ("data", "weights", "class_map", "output")
    (tmp_path / "c.yaml").write_text("".join(f"{name}: ~/{name}\n" for name in names))
    words = [f"--{name.replace('_', '-')}=~/{name}" for name in names]
    for given in (words, [f"--config={tmp_path / 'c.yaml'}"]):
        found = parse_args(given)
        assert (found.data, found.weights) == (["/home/me/data"], "/home/me/weights")
        assert (found.class_map, found.output) == tuple(Path("/home/me", n) for n in names[2:])
    found = parse(EvaluationOptions, ["--model", "x", *words[:3]], "evaluate", "")
    assert (found.data, found.weights) == (["/home/me/data"], "/home/me/weights")


def test_a_broken_recipe_leads_to_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resmlp_s13.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"cannot be read: while parsing .*[^?)]\.$"):
        parse_args(["--config", "resmlp_s13.yaml"])


def test_an_unknown_optimizer_leads_to_a_known_one() -> None:
    with pytest.raises(UserError, match=r"--opt lamp: timm has no such optimizer \(did .* lamb"):
        trainer_parts("--opt", "lamp")
    assert trainer_parts("--opt", "lookahead_AdamW")


@pytest.mark.parametrize("name", ["ResMLP-S12", "RESMLP_S12", "resmlp-s12", "resmlp_12_dist"])
def test_spellings_of_the_paper_lead_to_a_model(name: str) -> None:
    with pytest.raises(UserError, match=r"did you mean resmlp_s12"):
        build_model(name, 10)


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--model test_resnet: it refuses these arguments without"):
        build_model("test_resnet", 10, output_stride=3)

    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError("no such host")

    monkeypatch.setattr(timm, "create_model", fail)
    for name, source in (
        ("test_resnet", "--model test_resnet --pretrained"),
        ("resmlp_s12", "--weights timm:resmlp_12_224"),
    ):
        message = rf"{source}: timm's hub gave no weights \(no such host\); download them"
        with pytest.raises(UserError, match=message):
            build_model(name, 1000, pretrained=True)
