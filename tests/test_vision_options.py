"""Options of the image training that would have no effect, and the patches of models."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from resmlp_mt.errors import UserError
from resmlp_mt.vision import factory, train, training_parts
from resmlp_mt.vision.checkpoints import load
from resmlp_mt.vision.factory import create_model
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.training_arguments import AUGMENTATION, parse_args
from vision_checkpoints import folder

#: a value of each option of the augmentation that is not its default
AUGMENTED = {
    "scale": "0.5 1", "ratio": "1 1", "train_crop_mode": "rkrc", "hflip": "0.1", "vflip": "0.5",
    "color_jitter": "0.1", "color_jitter_prob": "0.5", "grayscale_prob": "0.1",
    "gaussian_blur_prob": "0.1", "aa": "rand-m9-mstd0.5-inc1", "train_interpolation": "bicubic",
    "reprob": "0.2", "remode": "rand --reprob 0.2", "recount": "2 --reprob 0.2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--decay-epochs 3", "--sched cosine does not use --decay-epochs"),
        ("--sched multistep --decay-epochs 3", "--sched multistep does not use --decay-epochs"),
        ("--sched none --warmup-epochs 2", "--sched none does not use --warmup-epochs"),
        ("--sched none --warmup-lr 1e-4", "--sched none does not use --warmup-lr"),
        ("--sched none --warmup-prefix", "--sched none does not use --warmup-prefix"),
        ("--sched none --min-lr 1e-4", "--sched none does not use --min-lr"),
        ("--sched none --lr-noise 0.4", "--sched none does not use --lr-noise"),
        ("--sched none --sched-on-updates", "--sched none does not use --sched-on-updates"),
        ("--sched none --layer-decay 0.7", "--sched none does not use --layer-decay"),
        ("--sched step --min-lr 1e-4", "--sched step does not use --min-lr"),
        ("--sched multistep --min-lr 1e-4", "--sched multistep does not use --min-lr"),
        ("--sched constant --min-lr 1e-4", "--sched constant does not use --min-lr"),
        ("--warmup-epochs 0 --warmup-lr 1e-4", "--warmup-epochs 0 does not use --warmup-lr"),
        ("--warmup-epochs 0 --warmup-prefix", "--warmup-epochs 0 does not use --warmup-prefix"),
        ("--lr-cycle-mul 2", "--lr-cycle-limit 1 does not use --lr-cycle-mul"),
        ("--lr-cycle-decay 0.1", "--lr-cycle-limit 1 does not use --lr-cycle-decay"),
        ("--momentum 0.95", "--opt adamw does not use --momentum"),
        ("--opt lookahead_Lamb --momentum 0.95", "--opt lookahead_Lamb does not use --momentum"),
        ("--amp-dtype float16", "--amp-dtype needs --amp"),
        *(
            (f"--no-aug --{name.replace('_', '-')} {value}", "--no-aug does not use --")
            for name, value in AUGMENTED.items()
        ),
    ],
)
def test_flags_without_effect_are_refused(tmp_path: Path, words: str, message: str) -> None:
    """Values of a file stay, as in timm: flags are of the user, who wanted something."""
    with pytest.raises(UserError, match=message):
        parse_args(["x", *words.split()])
    pairs = [given.split() for given in words.split("--")[1:]]
    values = {name: (given if len(given) > 1 else (given or [True])[0]) for name, *given in pairs}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    assert parse_args(["x", "-c", str(tmp_path / "c.yaml")])


def test_every_option_of_the_augmentation_is_tried() -> None:
    assert set(AUGMENTATION.split()) == AUGMENTED.keys()


@pytest.mark.parametrize("sched", ["cosine", "tanh", "poly", "wsd", "rsqrt", "plateau"])
def test_schedules_that_end_low_take_the_end(sched: str) -> None:
    words = ["--data", "x", "--sched", sched, "--min-lr", "1e-5", "--warmup-lr", "1e-4"]
    assert parse_args(words).min_lr == 1e-5


def test_optimizers_with_a_momentum_take_it() -> None:
    options = parse_args(["--data", "x", "--opt", "sgd", "--momentum", "0.95"])
    optimizer = training_parts.create_optimizer(options, create_model("resmlp_tiny", 2))
    assert optimizer.defaults["momentum"] == 0.95


def test_an_optimizer_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # else timm asks for CUDA first
    for opt, package in (("fusedlamb", "apex"), ("lookahead_bnbadam8bit", "bitsandbytes")):
        options = parse_args(["--data", "x", "--opt", opt])
        with pytest.raises(UserError, match=rf"^--opt {opt}: .*require {package} to be installed"):
            training_parts.create_optimizer(options, create_model("resmlp_tiny", 2))


@pytest.mark.parametrize(
    "error", [ImportError("it requires x to be installed"), KeyError("x"), ZeroDivisionError("x")]
)
def test_a_model_that_cannot_be_made_is_named(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match=r"^--model resnet18: .*x"):
        factory.build_model("resnet18", 10)


@pytest.mark.parametrize(
    ("words", "patch"),
    [
        ("", 2),
        ("--model resmlp_s12", 2),
        ("--model resnet18", None),
        ("--model timm:resmlp_12_224", None),
        ("--model resmlp_s12 --img-size 224", None),
        ("--model resmlp_s12 --img-size 224 --patch-size 8", 8),
        ("-c digits", 2),
        ("-c digits --model resmlp_s12", 2),
        ("-c digits --model resnet18", None),
        ("-c digits --model timm:test_vit --patch-size 4", 4),
        ("-c NULL", None),
        ("-c OTHER", 4),
        ("-c OTHER --model timm:test_vit2", 4),
        ("-c OTHER --model resmlp_tiny", 4),
    ],
)
def test_patches_are_for_the_model(tmp_path: Path, words: str, patch: int | None) -> None:
    """Small ones are usual for the digits and our models; a file's are for a model of its kind."""
    (tmp_path / "NULL.yaml").write_text("patch_size: null")
    (tmp_path / "OTHER.yaml").write_text("model: timm:test_vit\nimg_size: 8\npatch_size: 4")
    for name in ("NULL", "OTHER"):
        words = words.replace(name, f"{tmp_path}/{name}.yaml")
    assert parse_args(words.split()).patch_size == patch


@pytest.mark.parametrize("words", [[], ["-c", "digits"]])
def test_digits_train_models_of_timm(tmp_path: Path, words: list[Any]) -> None:
    """And go on with the same sizes."""
    few = ["--model=test_resnet", "--epochs=2", "--warmup-epochs=0", f"--output={tmp_path}"]
    train.main([*words, *few, "--max-updates=1"])
    train.main([f"--resume={tmp_path / 'last.pth'}", "--max-updates=2"])
    saved = load(tmp_path / "last.pth")
    assert saved["position"]["updates"] == 2
    assert saved["data_config"]["input_size"] == (3, 8, 8)


def test_classes_without_images_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = folder(folder(tmp_path / "data", "train", a=4, b=4), "val", a=1, b=1)
    (tmp_path / "map.txt").write_text("a\nb\n" + "".join(f"z{n}\n" for n in range(6)))
    words = ["--img-size=8", "--patch-size=4", "-b", "4", "-j", "0", "--max-updates=1"]
    train.main([str(data), *words, f"--output={tmp_path / 'a'}"])
    assert "no training images" not in caplog.text
    given = [f"--class-map={tmp_path / 'map.txt'}", f"--output={tmp_path / 'b'}"]
    train.main([str(data), *words, *given])
    told = "--data: 6 of the 8 classes have no training images (z0, z1, z2, z3, z4, ...): shards"
    assert told in caplog.text
