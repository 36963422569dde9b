"""The options of the training: named as in timm's train.py, with defaults from ``--config``.

A YAML file sets the defaults of options by name (``weight_decay`` or ``weight-decay``); flags win
over it. Its values are read by the same parser, so they are checked in the same way.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from timm.utils.misc import ParseKwargs

from resmlp_mt.errors import UserError
from resmlp_mt.vision.checkpoints import load

# The embedded data is not photographs: a mirrored digit is another sign, and colour says nothing.
DIGITS = {
    "hflip": 0.0,
    "color_jitter": 0.0,
    "epochs": 60,
    "batch_size": 64,
    "lr": 3e-3,
    "patch_size": 2,
}

# Where and how a run goes on, as opposed to what it computes.
MAY_CHANGE = {
    "data", "device", "on_error", "output", "pin_mem", "progress", "recovery_interval",
    "tensorboard", "torchcompile", "validation_batch_size", "workers",
}  # fmt: skip


# Pillow's, under timm's names
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


class _Parser(argparse.ArgumentParser):
    """Answers a wrong option with one sentence, without the 80 lines of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (--help lists the options).")


class Kwargs(ParseKwargs):
    """timm's KEY=VALUE words, with a sentence for those that are none.

    ``follow`` are keys that have an option of their own or come from the data.
    """

    follow: ClassVar[tuple[str, ...]] = ()

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        for word in values:
            name, equals, _ = word.partition("=")
            if not (equals and name.isidentifier()):
                raise argparse.ArgumentError(self, f"expected KEY=VALUE, but found {word!r}")
            if name in self.follow:
                raise argparse.ArgumentError(
                    self, f"{name} follows from --model and the data: leave it out"
                )
        super().__call__(parser, namespace, values, option_string)


class ModelKwargs(Kwargs):
    """Arguments of a model."""

    follow = ("name", "num_classes", "in_chans", "features_only")


def create_parser() -> argparse.ArgumentParser:
    """All options of ``python -m resmlp_mt.vision.train``."""
    parser = _Parser(
        prog="train",
        description="Train an image model; without options, on scikit-learn's handwritten digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    flag = argparse.BooleanOptionalAction
    probability = _number(float, least=0, most=1)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML with values for these options"
    )

    add = parser.add_argument_group("data").add_argument
    add(
        "--data",
        nargs="+",
        default=["digits"],
        metavar="DATA",
        help="DIR (train/, val/), cifar10-tar FILE, wds DIR (WebDataset shards), or digits",
    )
    add("--img-size", type=_number(int, above=0), nargs="+", metavar="PIXELS",
        help="side, or height and width; default: those of images decoded in memory, else 224"
    )  # fmt: skip
    add("--crop-pct", type=_number(float, above=0, most=1),
        help="central share that validation sees; default: all of images decoded in memory, "
             "else 0.9"
    )  # fmt: skip
    add(
        "--mean",
        type=_number(float),
        nargs=3,
        default=[0.485, 0.456, 0.406],
        help="of the channels",
    )
    add(
        "--std",
        type=_number(float, above=0),
        nargs=3,
        default=[0.229, 0.224, 0.225],
        help="of the channels",
    )
    add("--interpolation", choices=INTERPOLATIONS, default="bicubic", help="of resizing")
    add("--batch-size", type=_number(int, above=0), default=128, help="images per process and step")
    add("--validation-batch-size", type=_number(int, above=0), help="default: that of training")
    add(
        "--workers",
        type=_number(int, least=0),
        help="loading processes; default: 0 for data in memory, else 4",
    )
    add("--pin-mem", action=flag, default=False, help="pinned host memory, for CUDA")
    add("--on-error", choices=["raise", "skip"], default="raise", help="at a bad image")

    add = parser.add_argument_group("model").add_argument
    add("--model", default="resmlp_tiny", help="one of ours, or timm:NAME")
    add("--model-kwargs", nargs="*", default={}, action=ModelKwargs, metavar="KEY=VALUE",
        help="further arguments of the model, such as pooling=class_mlp")  # fmt: skip
    add("--patch-size", type=_number(int, above=0), help="default: the model's")
    add("--drop-path", type=_number(float, least=0, below=1), default=0.0, help="stochastic depth")
    add("--weights", metavar="FILE", help="start from these weights (.pth, .safetensors), "
        "or timm:NAME for timm's from the hub")  # fmt: skip
    add("--reset-head", action=flag, default=False, help="--weights without the classifier")

    add = parser.add_argument_group("optimization").add_argument
    add("--epochs", type=_number(int, above=0), default=100, help="passes over the data")
    add("--opt", default="adamw", help="one of timm's optimizers")
    add("--opt-kwargs", nargs="*", default={}, action=Kwargs, metavar="KEY=VALUE",
        help="further arguments of the optimizer")  # fmt: skip
    add("--lr", type=_number(float), default=1e-3, help="learning rate")
    add("--weight-decay", type=_number(float), default=0.05, help="not on scales, norms and biases")
    add("--momentum", type=_number(float), default=0.9, help="of optimizers that have one")
    add("--clip-grad", type=_number(float, above=0), help="largest norm of the gradient")
    add("--clip-mode", choices=["norm", "value", "agc"], default="norm", help="how to clip")
    add("--grad-accum-steps", type=_number(int, above=0), default=1, help="batches per update")
    add("--sched", default="cosine", help="one of timm's schedules, or none")
    add("--sched-on-updates", action=flag, default=False, help="step it by update, not by epoch")
    add("--warmup-epochs", type=_number(int, least=0), default=5, help="epochs of linear warm-up")
    add("--warmup-lr", type=_number(float), default=1e-6, help="learning rate at its start")
    add("--min-lr", type=_number(float), default=1e-6, help="learning rate at the end")
    add("--model-ema", action=flag, default=False, help="moving average of the weights")
    add("--model-ema-decay", type=probability, default=0.9998, help="its decay")
    add("--model-ema-warmup", action=flag, default=False, help="a smaller decay at first")

    add = parser.add_argument_group("augmentation and regularization").add_argument
    # the option is named for its negation, timm's --no-aug
    add("--aug", action=flag, default=True, help="--no-aug: resize and central crop only")
    add(
        "--scale",
        type=_number(float, above=0, most=1),
        nargs=2,
        default=[0.08, 1.0],
        help="area of the random crop",
    )
    add(
        "--ratio",
        type=_number(float, above=0),
        nargs=2,
        default=[3 / 4, 4 / 3],
        help="its aspect ratio",
    )
    add("--train-crop-mode", choices=["rrc", "rkrc", "rkrr"], help="as in timm")
    add("--hflip", type=probability, default=0.5, help="probability of mirroring")
    add("--vflip", type=probability, default=0.0, help="probability of turning upside down")
    add(
        "--color-jitter",
        type=_number(float),
        default=0.4,
        help="strength; off with --aa, as in timm",
    )
    add("--aa", help="AutoAugment policy, such as rand-m9-mstd0.5-inc1")
    add("--train-interpolation", choices=["random", *INTERPOLATIONS], default="random",
        help="of the random crop")  # fmt: skip
    add("--aug-repeats", type=_number(int, least=0), default=0,
        help="views of an image in a batch (repeated augmentation), 3 for the authors; 0: off"
    )  # fmt: skip
    add("--reprob", type=probability, default=0.0, help="probability of random erasing")
    add("--remode", choices=["const", "rand", "pixel"], default="pixel", help="what is put there")
    add("--recount", type=_number(int, above=0), default=1, help="most areas erased in an image")
    add("--smoothing", type=_number(float, least=0, below=1), default=0.1, help="label smoothing")
    add("--mixup", type=_number(float, least=0), default=0.0, help="alpha of mixup; 0: off")
    add("--cutmix", type=_number(float, least=0), default=0.0, help="alpha of cutmix; 0: off")
    add("--mixup-prob", type=probability, default=1.0, help="probability of either")
    add("--mixup-switch-prob", type=probability, default=0.5, help="probability of cutmix if both")
    add("--mixup-mode", choices=["batch", "pair", "elem"], default="batch", help="one factor per")

    add = parser.add_argument_group("distillation").add_argument
    add("--teacher", metavar="MODEL", help="timm:NAME, or a checkpoint of this command")
    add("--teacher-weights", metavar="FILE", help="of timm:NAME (.pth, .safetensors)")
    add("--distillation-type", choices=["none", "soft", "hard"], default="none", help="of DeiT")
    add("--distillation-alpha", type=probability, default=0.5, help="weight of the teacher's term")
    add(
        "--distillation-tau", type=_number(float, above=0), default=1.0, help="temperature, if soft"
    )

    add = parser.add_argument_group("running").add_argument
    add("--output", type=Path, default=Path("outputs/vision"), help="folder for the results")
    add("--resume", type=Path, metavar="FILE", help="go on from this last.pth")
    add(
        "--max-updates",
        type=_number(int, above=0),
        help="save and stop after so many updates in all",
    )
    add("--recovery-interval", type=_number(int, least=0), default=0,
        help="save last.pth after so many updates, too; 0: after epochs only")  # fmt: skip
    add("--seed", type=_number(int, least=0), default=42, help="of weights, order and augmentation")
    add("--device", help="default: cuda if there is one, else cpu")
    add("--amp", action=flag, default=False, help="mixed precision")
    add("--amp-dtype", choices=["bfloat16", "float16"], default="bfloat16", help="its type")
    add("--channels-last", action=flag, default=False, help="memory layout of the images")
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="torch.compile")
    add("--tensorboard", action=flag, default=False, help="event files beside summary.csv")
    add("--progress", action=flag, default=True, help="progress bar")
    return parser


def _number(
    kind: type[int] | type[float],
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> Any:
    """Type of an option that is a finite number within these bounds."""

    def number(text: str) -> float:
        value = kind(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"must be a finite number, but is {text}")
        for holds, bound in (
            (value >= least, f"at least {least}"),
            (value > above, f"above {above}"),
            (value <= most, f"at most {most}"),
            (value < below, f"below {below}"),
        ):
            if not holds:
                raise argparse.ArgumentTypeError(f"must be {bound}, but is {text}")
        return value

    number.__name__ = kind.__name__  # argparse names it in its message
    return number


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options: flags over ``--config`` over those of the run that ``--resume`` continues.

    Raises:
        UserError: for an option, a value or a file that is wrong.
    """
    parser = create_parser()
    flags = list(sys.argv[1:] if argv is None else argv)
    sources = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    sources.add_argument("--config", type=Path)
    sources.add_argument("--resume", type=Path)
    files, _ = sources.parse_known_args(flags)
    words: list[str] = []
    earlier = _config_of(files.resume) if files.resume else {}
    if files.resume:  # a folder may have been moved
        parser.set_defaults(output=files.resume.parent)
    moved = {name: value for name, value in earlier.items() if name != "output"}
    words += _to_flags(moved, parser, files.resume)
    if files.config:
        words += _to_flags(_read_yaml(files.config), parser, files.config)
    words += flags
    if parser.parse_args(words).data == ["digits"]:
        parser.set_defaults(**DIGITS)
    options = parser.parse_args(words)
    if options.img_size:
        if len(options.img_size) > 2:
            raise UserError(
                "--img-size takes a side, or height and width, but not "
                f"{len(options.img_size)} values."
            )
        # A side and the pair are the same run to --resume.
        options.img_size = [options.img_size[0], options.img_size[-1]]
    if options.teacher_weights and not options.teacher:
        raise UserError("--teacher-weights needs --teacher: give it, or leave out both.")
    if files.resume:
        _check_same_run(options, earlier)
    return options


def _config_of(path: Path) -> dict[str, Any]:
    config = load(path).get("config")
    if not isinstance(config, dict):
        raise UserError(
            f"--resume {path} does not say with which options it was trained; expected the "
            "last.pth of a training."
        )
    return config


def _check_same_run(options: argparse.Namespace, earlier: dict[str, Any]) -> None:
    """Refuse what a training that goes on would not follow, such as another learning rate."""
    for name, value in _plain(to_config(options)).items():
        if name not in MAY_CHANGE and value != _plain(earlier.get(name)):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"--resume {options.resume} goes on with {flag} {earlier.get(name)}, not {value}; "
                "start a new training from its weights with --weights to change that."
            )


def _plain(value: Any) -> Any:
    """Through YAML and back, where a tuple becomes a list."""
    return yaml.safe_load(yaml.safe_dump(value))


def to_config(options: argparse.Namespace) -> dict[str, Any]:
    """The resolved options as plain values, in a form that ``--config`` takes again."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in ("config", "resume", "max_updates") and value is not None
    }


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"--config {path} cannot be read: {reason}.") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected lines of the form OPTION: VALUE.")
    return values


def _to_flags(
    values: dict[str, Any], parser: argparse.ArgumentParser, path: Path | None
) -> list[str]:
    """The same options as words of a command line."""
    known = {action.dest for action in parser._actions} - {"help", "config", "resume"}
    words: list[str] = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise UserError(f"{path}: there is no option {key}; train --help lists them.")
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        elif isinstance(value, dict):
            words += [flag, *(f"{k}={v}" for k, v in value.items())]
        elif value is not None:
            words.append(f"{flag}={value}")
    return words
