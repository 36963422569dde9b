"""The options of the training: named as in timm's train.py, with defaults from ``--config``.

A YAML file sets the defaults of options by name (``weight_decay`` or ``weight-decay``); flags win
over it. Its values are checked by the same parser. ``base: OTHER.yaml`` starts from another file in
the same folder.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from resmlp_mt.command_line import number
from resmlp_mt.errors import UserError
from resmlp_mt.vision.options import (
    INTERPOLATIONS,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SHARE,
    KeyValues,
    ModelKeyValues,
    OnError,
    Parser,
    only_tells,
    option,
)

# The digits are not photographs: a mirrored digit is another sign, and colour means nothing.
DIGITS = {
    "hflip": 0.0,
    "color_jitter": 0.0,
    "epochs": 60,
    "batch_size": 64,
    "lr": 3e-3,
    "patch_size": 2,
}

# Options that do not change what a run computes, and may differ after --resume.
MAY_CHANGE = {
    "data", "device", "on_error", "output", "pin_mem", "progress", "recovery_interval",
    "tensorboard", "torchcompile", "validation_batch_size", "workers",
}  # fmt: skip
#: folders of the recipes, in a wheel and in a checkout
RECIPES = [
    Path(__file__).parents[1] / "configs/vision",
    Path(__file__).parents[2] / "configs/vision",
]

Sizes = tuple[float, ...] | list[float]
FINITE = number(float)
SOME = number(float, above=0)


@dataclass(frozen=True)
class DataOptions:
    """Data."""

    data: list[str] = option(
        ["digits"], "--data-dir", nargs="+", metavar="DATA",
        help="DIR (train/, val/), cifar10-tar FILE, wds DIR (WebDataset shards), or digits",
    )  # fmt: skip
    img_size: list[int] | None = option(
        None, type=POSITIVE, nargs="+", metavar="PIXELS",
        help="side, or height and width; default: the size of images in memory, else the model's, "
        "else 224",
    )  # fmt: skip
    crop_pct: float | None = option(
        None, type=SHARE,
        help="central share of the image in validation; default: 1 for images in memory, else 0.9",
    )  # fmt: skip
    mean: list[float] = option([0.485, 0.456, 0.406], type=FINITE, nargs=3, help="of each channel")
    std: list[float] = option([0.229, 0.224, 0.225], type=SOME, nargs=3, help="of each channel")
    interpolation: str = option("bicubic", choices=INTERPOLATIONS, help="filter for resizing")
    batch_size: int = option(128, "-b", type=POSITIVE, help="images per process and step")
    validation_batch_size: int | None = option(
        None, "-vb", type=POSITIVE, help="default: that of training"
    )
    workers: int | None = option(
        None, "-j", type=number(int, least=0, most=1024),
        help="loading processes; default: 0 for data in memory, else 4",
    )  # fmt: skip
    pin_mem: bool = option(False, help="pinned host memory, for CUDA")
    on_error: OnError = option(
        "raise", choices=["raise", "skip"], help="at a bad image: stop, or skip it"
    )


@dataclass(frozen=True)
class ModelOptions:
    """Model."""

    model: str = option("resmlp_tiny", help="one of ours or timm's; timm:NAME for timm's own code")
    model_kwargs: dict[str, Any] = option(
        {}, nargs="*", action=ModelKeyValues, metavar="KEY=VALUE",
        help="further arguments of the model, such as pooling=class_mlp",
    )  # fmt: skip
    patch_size: int | None = option(None, type=POSITIVE, help="default: the model's")
    drop: float = option(
        0.0, type=number(float, least=0, below=1), help="dropout before the classifier"
    )
    drop_path: float = option(0.0, type=number(float, least=0, below=1), help="stochastic depth")
    grad_checkpointing: bool = option(False, help="less memory, a third more computation")
    pretrained: bool = option(False, help="start from the weights of timm's hub")
    weights: str | None = option(
        None, "--initial-checkpoint", metavar="FILE",
        help="start from these weights (.pth, .safetensors), or timm:NAME for timm's from the hub",
    )  # fmt: skip
    reset_head: bool = option(False, help="--weights without the classifier")


@dataclass(frozen=True)
class OptimizationOptions:
    """Optimization."""

    epochs: int = option(100, type=POSITIVE, help="passes over the data")
    opt: str = option("adamw", help="one of timm's optimizers")
    opt_kwargs: dict[str, Any] = option(
        {}, nargs="*", action=KeyValues, metavar="KEY=VALUE",
        help="further arguments of the optimizer",
    )  # fmt: skip
    lr: float = option(1e-3, type=FINITE, help="learning rate")
    weight_decay: float = option(0.05, type=FINITE, help="not on scales, norms and biases")
    momentum: float = option(0.9, type=FINITE, help="for optimizers that have one")
    layer_decay: float | None = option(None, type=SHARE, help="of learning rates from the top down")
    clip_grad: float | None = option(None, type=SOME, help="largest norm of the gradient")
    clip_mode: str = option("norm", choices=["norm", "value", "agc"], help="what is clipped")
    grad_accum_steps: int = option(1, type=POSITIVE, help="batches per update")
    sched: str = option("cosine", help="one of timm's schedules, or none")
    sched_on_updates: bool = option(False, help="step the schedule by update, not by epoch")
    warmup_epochs: int = option(5, type=NOT_NEGATIVE, help="epochs of linear warm-up")
    warmup_lr: float = option(1e-6, type=FINITE, help="learning rate at the start of the warm-up")
    min_lr: float = option(1e-6, type=FINITE, help="learning rate at the end")
    model_ema: bool = option(False, help="moving average of the weights")
    model_ema_decay: float = option(0.9998, type=PROBABILITY, help="its decay")
    model_ema_warmup: bool = option(False, help="a smaller decay at first")


@dataclass(frozen=True)
class AugmentationOptions:
    """Augmentation and regularization."""

    # the option is timm's --no-aug
    aug: bool = option(True, help="--no-aug: resize and central crop only")
    scale: list[float] = option([0.08, 1.0], type=SHARE, nargs=2, help="area of the random crop")
    ratio: list[float] = option([3 / 4, 4 / 3], type=SOME, nargs=2, help="its aspect ratio")
    train_crop_mode: str | None = option(None, choices=["rrc", "rkrc", "rkrr"], help="as in timm")
    hflip: float = option(0.5, type=PROBABILITY, help="probability of mirroring")
    vflip: float = option(0.0, type=PROBABILITY, help="probability of turning upside down")
    color_jitter: float = option(0.4, type=FINITE, help="its strength; off with --aa, as in timm")
    aa: str | None = option(None, help="AutoAugment policy, such as rand-m9-mstd0.5-inc1")
    train_interpolation: str = option(
        "random", choices=["random", *INTERPOLATIONS], help="filter for the random crop"
    )
    aug_repeats: int = option(
        0, type=NOT_NEGATIVE,
        help="views of an image in a batch (repeated augmentation); the authors use 3; 0: off",
    )  # fmt: skip
    reprob: float = option(0.0, type=PROBABILITY, help="probability of random erasing")
    remode: str = option(
        "pixel", choices=["const", "rand", "pixel"], help="what replaces the erased area"
    )
    recount: int = option(1, type=POSITIVE, help="largest number of erased areas in an image")
    smoothing: float = option(0.1, type=number(float, least=0, below=1), help="label smoothing")
    mixup: float = option(0.0, type=number(float, least=0), help="alpha of mixup; 0: off")
    cutmix: float = option(0.0, type=number(float, least=0), help="alpha of cutmix; 0: off")
    mixup_prob: float = option(1.0, type=PROBABILITY, help="probability of either")
    mixup_switch_prob: float = option(0.5, type=PROBABILITY, help="probability of cutmix if both")
    mixup_mode: str = option(
        "batch", choices=["batch", "pair", "elem"], help="one mixing factor for each"
    )


@dataclass(frozen=True)
class DistillationOptions:
    """Distillation."""

    teacher: str | None = option(
        None, metavar="MODEL", help="one of timm's, or a checkpoint of this command"
    )
    teacher_weights: str | None = option(
        None, metavar="FILE", help="its weights (.pth, .safetensors), or timm:NAME from timm's hub"
    )
    distillation_type: str = option("none", choices=["none", "soft", "hard"], help="as in DeiT")
    distillation_alpha: float = option(0.5, type=PROBABILITY, help="weight of the teacher's term")
    distillation_tau: float = option(1.0, type=SOME, help="temperature, if soft")


@dataclass(frozen=True)
class RunOptions:
    """Running."""

    config: Path | None = option(
        None, "-c", type=Path, metavar="FILE",
        help="YAML with values for these options: a file, or a name such as resmlp_s12",
    )  # fmt: skip
    output: Path = option(
        Path("outputs/vision"), type=Path,
        help="folder for the results; a second training writes to NAME-1",
    )  # fmt: skip
    resume: Path | None = option(None, type=Path, metavar="FILE", help="continue this last.pth")
    max_updates: int | None = option(
        None, type=POSITIVE, help="save and stop after this many updates in all"
    )
    recovery_interval: int = option(
        0, type=NOT_NEGATIVE,
        help="also save last.pth after this many updates; 0: only after epochs",
    )  # fmt: skip
    seed: int = option(42, type=NOT_NEGATIVE, help="seed of weights, order and augmentation")
    device: str | None = option(None, help="default: cuda if there is one, else cpu")
    amp: bool = option(False, help="mixed precision")
    amp_dtype: str = option("bfloat16", choices=["bfloat16", "float16"], help="its type")
    channels_last: bool = option(False, help="memory layout of the images")
    torchcompile: str | None = option(
        None, nargs="?", const="inductor", metavar="BACKEND", help="torch.compile"
    )
    tensorboard: bool = option(False, help="event files beside summary.csv")
    progress: bool = option(True, help="progress bar")


@dataclass(frozen=True)
class TrainingOptions(
    RunOptions,
    DistillationOptions,
    AugmentationOptions,
    OptimizationOptions,
    ModelOptions,
    DataOptions,
):
    """All options of ``python -m resmlp_mt.vision.train``."""

    def to_config(self) -> dict[str, Any]:
        """The options as plain values, which ``--config`` can read."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in values.items()
            if name not in ("config", "resume", "max_updates") and value is not None
        }


def create_parser() -> Parser:
    """All options of ``python -m resmlp_mt.vision.train``."""
    parser = Parser(
        "train",
        TrainingOptions,
        "Train an image model; without options, on scikit-learn's handwritten digits.",
        needs=["yaml", "sklearn"],
    )
    parser.add_argument("folder", nargs="?", metavar="DIR", help="the same as --data DIR")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> TrainingOptions:
    """The options: flags over ``--config`` over those of the run that ``--resume`` continues.

    Raises:
        UserError: for an option, a value or a file that is wrong.
    """
    parser = create_parser()
    flags = list(sys.argv[1:] if argv is None else argv)
    if only_tells(flags):
        parser.parse_args(flags)
    parser.check_packages()
    sources = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    sources.add_argument("-c", "--config", type=Path)
    sources.add_argument("--resume", type=Path)
    files, _ = sources.parse_known_args(flags)
    words: list[str] = []
    earlier = _config_of(files.resume) if files.resume else {}
    if files.resume:  # the folder may have been moved
        parser.set_defaults(output=files.resume.parent)
    moved = {name: value for name, value in earlier.items() if name != "output"}
    words += _to_flags(moved, parser, files.resume)
    if files.config:
        words += _to_flags(_read_yaml(files.config), parser, files.config)
    words += flags
    if _data(parser.parse_args(words)) == ["digits"]:
        parser.set_defaults(**DIGITS)
    found = parser.parse_args(words)
    found.data = _data(found)
    del found.folder
    options = TrainingOptions(**vars(found))
    if options.img_size:
        if len(options.img_size) > 2:
            raise UserError(
                "--img-size takes a side, or height and width, but not "
                f"{len(options.img_size)} values."
            )
        # For --resume, a side and the pair are the same.
        options = replace(options, img_size=[options.img_size[0], options.img_size[-1]])
    if options.teacher_weights and not options.teacher:
        raise UserError("--teacher-weights needs --teacher: give it, or leave out both.")
    if files.resume:
        _check_same_run(options, earlier)
    return options


def _data(found: argparse.Namespace) -> list[str]:
    """``--data``, or the folder before the options, as in timm."""
    return [found.folder] if found.folder else found.data


def _config_of(path: Path) -> dict[str, Any]:
    from resmlp_mt.vision.checkpoints import load  # with PyTorch

    config = load(path).get("config")
    if not config:
        raise UserError(
            f"--resume {path} lacks the options of its training: give the last.pth of a training."
        )
    return dict(config)


def _check_same_run(options: TrainingOptions, earlier: dict[str, Any]) -> None:
    """Refuse options that a resumed training would ignore, such as another learning rate."""
    for name, value in _plain(options.to_config()).items():
        # options that an earlier version did not have keep their old meaning
        before = _plain(earlier.get(name, getattr(TrainingOptions(), name)))
        if name not in MAY_CHANGE and value != before:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"--resume {options.resume} continues with {flag} {before}, not {value}; to change "
                "that, start a new training from its weights with --weights."
            )


def _plain(value: Any) -> Any:
    """A value with lists instead of tuples, as in YAML."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe over those of its ``base``."""
    import yaml

    name = path.name.removesuffix(".yaml")
    ours = path.parent in (Path(), Path("configs/vision"))
    named = [folder / f"{name}.yaml" for folder in RECIPES if ours]
    found = path if path.exists() else next((p for p in named if p.exists()), path)
    try:
        values = yaml.safe_load(found.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(f"--config {path} cannot be read: {reason}.") from error
    if not isinstance(values, dict) or not all(_flat(value) for value in values.values()):
        raise UserError(f"--config {path}: expected lines of the form OPTION: VALUE.")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str) or Path(base).name != base or base in ("", "..") or "\0" in base:
        raise UserError(
            f"--config {path}: base must be the name of a file beside it, but is {base!r}."
        )
    if found.with_name(base) in (*above, found):
        raise UserError(f"--config {path}: base must name another file, but is {base!r}.")
    return _read_yaml(found.with_name(base), (*above, found)) | values


def _flat(value: Any, depth: int = 2) -> bool:
    """Whether a value is plain or a shallow collection: YAML aliases can make huge ones."""
    parts = value.values() if isinstance(value, dict) else value
    return not isinstance(value, dict | list) or (
        depth > 0 and len(value) <= 100 and all(_flat(part, depth - 1) for part in parts)
    )


def _to_flags(
    values: dict[str, Any], parser: argparse.ArgumentParser, path: Path | None
) -> list[str]:
    """The options of a file as arguments of a command line."""
    own = {"help", "version", "config", "resume", "folder"}
    known = {action.dest for action in parser._actions} - own
    words: list[str] = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise UserError(f"{path}: there is no option {key}; train --help lists them.")
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        elif isinstance(value, dict):
            words += [flag, *(f"{k}={v}" for k, v in value.items())]
        elif value is not None:
            words.append(f"{flag}={value}")
    return words
