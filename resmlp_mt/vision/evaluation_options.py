"""The options of the commands that use a trained model: evaluate, knn, predict, export."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self, TypeVar

from resmlp_mt.command_line import command, option
from resmlp_mt.errors import UserError
from resmlp_mt.files import path_text
from resmlp_mt.option_types import POSITIVE, number
from resmlp_mt.vision.memory import memory_told
from resmlp_mt.vision.options import (
    WORKERS,
    ImagePreparation,
    ModelArguments,
    OnError,
    Parser,
    model_name,
    of_hub,
)

FORMATS = ("jsonl", "json", "csv")


@dataclass(frozen=True)
class ModelChoice(ModelArguments, ImagePreparation):
    """The model: a checkpoint, or --model with --weights or --pretrained."""

    checkpoint: Path | None = option(
        None, "checkpoint", nargs="?", help="file written by resmlp_mt.vision.train"
    )
    model: str | None = option(
        None, "-m", metavar="NAME", type=model_name,
        help="resmlp_s12, resmlp_s24, resmlp_s36, resmlp_b24, resmlp_tiny, or one of timm's; "
        "timm:NAME for timm's own code",
    )  # fmt: skip
    weights: str | None = option(
        None, "--initial-checkpoint", "--checkpoint", type=path_text, metavar="FILE",
        help="weights of --model from timm, the authors or another trainer (.pth, .safetensors), "
        "or timm:NAME for those of timm's hub",
    )  # fmt: skip
    num_classes: int | None = option(
        None, type=POSITIVE,
        help="outputs of --model (default: those of --class-map or --pretrained, else 1000)",
    )  # fmt: skip
    use_ema: bool = option(True, help="the moving average of a checkpoint's weights, if it has one")
    img_size: int | None = option(
        None, type=POSITIVE, help="side of the images in pixels (default: as in training)"
    )

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        """The options that a command line gives, as timm's commands understand them.

        ``--checkpoint FILE`` without ``--model`` is the checkpoint, which must exist.

        Raises:
            UserError: naming it, before PyTorch is loaded.
        """
        weights, checkpoint = given["weights"] or None, given["checkpoint"]
        if weights is not None and given["model"] is None and checkpoint is None:
            if of_hub(weights) or Path(weights).is_dir():
                raise UserError(f"--weights {weights} needs --model NAME: give both.")
            checkpoint, weights = Path(weights), None
        if checkpoint is not None and not checkpoint.exists():
            raise UserError(f"{checkpoint} cannot be read: No such file or directory.")
        return cls(**given | {"checkpoint": checkpoint, "weights": weights})


@dataclass(frozen=True)
class Loading:
    """Loading."""

    batch_size: int = option(128, "-b", type=POSITIVE, help="images at once")
    workers: int = option(2, "-j", type=WORKERS, help="processes that read images, 0: none")
    device: str | None = option(None, help="default: cuda if there is one, else cpu")
    on_error: OnError = option(
        "raise", choices=("raise", "skip"),
        help="if an image cannot be read: stop, or leave it out and report it",
    )  # fmt: skip


@dataclass(frozen=True)
class Computation:
    """Computation."""

    dtype: str = option(
        "float32", "--model-dtype", choices=("float32", "bfloat16", "int8"),
        help="type of the products; int8: only on a CPU, in the feed-forward layers of a ResMLP",
    )  # fmt: skip


@dataclass(frozen=True)
class DataChoice(ModelChoice):
    """Data."""

    data: list[str] | None = option(
        None, "--data-dir", type=path_text, nargs="+", metavar="DATA",
        help="DIR, cifar10-tar FILE, wds DIR or digits (default: what a checkpoint was trained on)",
    )  # fmt: skip

    folder: Path | None = option(
        None, "folder", nargs="?", metavar="DIR", help="the same as --data DIR"
    )

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        """A folder without an option is the data, as in timm's validate.py, also before the file.

        Raises:
            UserError: if there are two of them.
        """
        first, folder = given["checkpoint"], given["folder"]
        if folder is not None and first.is_dir() and folder.is_file():
            folder, given["checkpoint"] = first, folder
        if folder is None and (given["model"] or given["weights"]) and first and first.is_dir():
            folder, given["checkpoint"] = first, None
        if folder is not None:
            if given["data"] is not None:
                raise UserError(f"--data is given, and {folder} too: leave out one of them.")
            given["data"] = [str(folder)]
        return super().of(given)


@dataclass(frozen=True)
class Reports:
    """Output."""

    json: Path | None = option(None, metavar="FILE", help="the whole report")
    confusion_csv: Path | None = option(
        None, metavar="FILE", help="rows: true classes, columns: predicted"
    )
    confusion_png: Path | None = option(None, metavar="FILE", help="the same as a picture")


@dataclass(frozen=True)
class EvaluationOptions(Reports, Computation, Loading, DataChoice):
    """What is evaluated."""

    split: str | None = option(
        None, metavar="NAME",
        help="train, val, or another folder (default: the checkpoint's --val-split, else val)",
    )  # fmt: skip
    use_train_size: bool = option(
        False, help="a model of timm gets images of its training's size, not of its tests'"
    )


@dataclass(frozen=True)
class NeighbourOptions(Loading, DataChoice):
    """Neighbours."""

    nb_knn: list[int] = option(
        [20], "-k", nargs="+", type=POSITIVE, metavar="K",
        help="neighbours that vote, one or more numbers",
    )  # fmt: skip
    temperature: float = option(
        0.07, type=number(float, above=0), metavar="T",
        help="T in the weights exp(similarity / T)",
    )  # fmt: skip
    train_split: str | None = option(
        None, metavar="NAME", help="the part that votes (default: the checkpoint's, else train)"
    )
    val_split: str | None = option(
        None, metavar="NAME", help="the part to classify (default: the checkpoint's, else val)"
    )
    json: Path | None = option(None, metavar="FILE", help="write a report")


@dataclass(frozen=True)
class PredictionOptions(Computation, Loading, ModelChoice):
    """Images and output."""

    inputs: list[Path] = option([], "inputs", nargs="*", metavar="INPUT",
                                help="image or folder")  # fmt: skip
    topk: int = option(
        5, type=POSITIVE, metavar="K", help="labels for each image, all if there are fewer"
    )
    output: Path | None = option(
        None, metavar="FILE", help="file to write (default: standard output)"
    )
    format: str | None = option(
        None, choices=FORMATS, help="default: from the suffix of --output, else jsonl"
    )

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        """With ``--model`` or ``--checkpoint``, the first argument is an image."""
        first = given["checkpoint"]
        # best.pth and --weights together are a mistake, which has its own message
        is_other = first is not None and first.suffix.lower() != ".pth"
        if first is not None and (given["model"] is not None or (given["weights"] and is_other)):
            given |= {"inputs": [first, *given["inputs"]], "checkpoint": None}
        return super().of(given)


@dataclass(frozen=True)
class ExportOptions(ModelChoice):
    """Output."""

    output: Path = option(Path("model.onnx"), metavar="FILE", help="the ONNX graph to write")
    graph: Path | None = option(
        None, "graph", nargs="?", metavar="GRAPH.onnx", help="the same as --output"
    )

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        """A graph without an option is the output, also alone, as in timm's onnx_export.py."""
        first, graph = given["checkpoint"], given["graph"]
        if graph is None and first is not None and first.suffix.lower() == ".onnx":
            graph, given["checkpoint"] = first, None
        return super().of(given | ({"output": graph} if graph else {}))


Options = TypeVar("Options", bound=ModelChoice)


def parse(
    kind: type[Options],
    argv: Sequence[str] | None,
    name: str,
    description: str,
    needs: Sequence[str] = (),
) -> Options:
    """The options of a command line; the last three arguments are as in :class:`Parser`.

    Raises:
        UserError: for a wrong one, or an extra that is not installed.
    """
    parser = Parser(name, kind, description, needs)
    return kind.of(vars(parser.parse_intermixed_args(argv)))


def command_main(
    kind: type[Options], name: str, description: str, function: str, needs: Sequence[str] = ()
) -> Callable[..., None]:
    """The ``main`` of a command: :func:`parse`, then the "module:function" of this room.

    The module loads PyTorch, and is imported after the options were read.
    """

    @command
    def main(argv: Sequence[str] | None = None) -> None:
        options = parse(kind, argv, name, description, needs)
        module, _, called = function.partition(":")
        run = getattr(import_module(f"resmlp_mt.vision.{module}"), called)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        with memory_told() if isinstance(options, Loading) else nullcontext():
            run(options)

    return main
