"""What evaluate, knn and predict share: their options, the model, batches and output files."""

import argparse
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from resmlp_mt.errors import UserError
from resmlp_mt.vision.checkpoints import TIMM, build_model, load_model
from resmlp_mt.vision.data import ImageDataset
from resmlp_mt.vision.folding import can_be_folded, folded
from resmlp_mt.vision.images import BadImage, SkipCounter, collate
from resmlp_mt.vision.model import ResMLP
from resmlp_mt.vision.options import ModelKwargs
from resmlp_mt.vision.weights import hub_weights, load_weights


@dataclass
class Classifier:
    """A model in evaluation mode and what belongs to it.

    Attributes:
        model: images (batch, channels, height, width) -> logits (batch, classes).
        name: the checkpoint, or the model and its weights.
        weights: "model" or "model_ema", which of a checkpoint's weights these are.
        classes: name of each output; None if the weights came without names.
        data_config: how images are prepared, as in timm.
        data: what the model was trained on, as in ``--data``, if that is known.
    """

    model: nn.Module
    name: str
    weights: str
    classes: list[str] | None
    data_config: dict[str, Any]
    data: list[str] | None

    @property
    def num_classes(self) -> int:
        """The number of outputs."""
        return int(self.model.num_classes)  # type: ignore[arg-type]

    def logits(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) -> (batch, classes)."""
        result: Tensor = self._folded(images)
        return result

    @cached_property
    def _folded(self) -> nn.Module:
        """The model without its affine maps, where they can be folded; features keep them."""
        return folded(self.model) if can_be_folded(self.model) else self.model

    def features(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) -> what the last layer sees, (batch, dim)."""
        if isinstance(self.model, ResMLP):
            return self.model.forward_features(images)
        timm_model: Any = self.model
        pooled: Tensor = timm_model.forward_head(
            timm_model.forward_features(images), pre_logits=True
        )
        return pooled


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options behind :func:`load_classifier`."""
    group = parser.add_argument_group("model", "a checkpoint, or --model with --weights")
    group.add_argument(
        "checkpoint", nargs="?", type=Path, help="file written by resmlp_mt.vision.train"
    )
    group.add_argument(
        "--model",
        metavar="NAME",
        help="resmlp_s12, resmlp_s24, resmlp_s36, resmlp_b24, resmlp_tiny, or timm:NAME",
    )
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="timm's or the authors' weights of --model, or timm:NAME for those of timm's hub",
    )
    group.add_argument(
        "--num-classes",
        metavar="N",
        type=positive,
        default=1000,
        help="outputs of --model (default: %(default)s)",
    )
    group.add_argument(
        "--patch-size", metavar="N", type=positive, help="of --model, where not the usual one"
    )
    group.add_argument(
        "--model-kwargs",
        nargs="*",
        default={},
        action=ModelKwargs,
        metavar="KEY=VALUE",
        help="further arguments of --model, as in training, such as norm=layernorm",
    )
    group.add_argument(
        "--use-ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take the moving average of a checkpoint's weights if it has one (default: yes)",
    )
    group.add_argument(
        "--img-size",
        metavar="N",
        type=positive,
        help="side of the images in pixels, where it is not that of the training",
    )
    group.add_argument(
        "--crop-pct",
        metavar="SHARE",
        type=_share,
        help="side of the central crop, as a share of the resized image (default: the checkpoint's;"
        " 0.9, the paper's, with --weights)",
    )


def add_loader_options(parser: argparse.ArgumentParser) -> None:
    """The options behind :func:`batches`."""
    group = parser.add_argument_group("loading")
    group.add_argument("-b", "--batch-size", metavar="N", type=positive, default=128)
    group.add_argument(
        "-j",
        "--workers",
        metavar="N",
        type=_not_negative,
        default=2,
        help="processes that read images, 0: none (default: %(default)s)",
    )
    group.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        type=_device,
        help="default: %(default)s",
    )
    group.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="an image that cannot be read: stop, or leave it out and report it "
        "(default: %(default)s)",
    )


def positive(text: str) -> int:
    """Type of options that count something.

    Raises:
        argparse.ArgumentTypeError: for anything else than 1, 2, ...
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


def _not_negative(text: str) -> int:
    return 0 if text == "0" else positive(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 1, got {text!r}")
    return share


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.zeros(1, device=device).item()  # of a meta device nothing can be read
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {reason}") from error
    return device


def load_classifier(args: argparse.Namespace) -> Classifier:
    """The model that the options of :func:`add_model_options` name, on ``--device``.

    Raises:
        UserError: if they name no model, or its file cannot be used.
    """
    if args.checkpoint is not None:
        given = (args.model, args.weights, args.patch_size, args.model_kwargs or None)
        if any(x is not None for x in given):
            raise UserError(
                f"{args.checkpoint} is a checkpoint and knows its model: leave out --model, "
                "--weights, --patch-size and --model-kwargs, or the checkpoint."
            )
        classifier = _from_checkpoint(args)
    elif args.model is not None and args.weights is not None:
        classifier = _from_weights(args)
    else:
        raise UserError(
            "no model: give a checkpoint, in front of options that take several words, or --model "
            "NAME with --weights FILE."
        )
    if args.crop_pct is not None:
        classifier.data_config["crop_pct"] = args.crop_pct
    classifier.model.eval().to(args.device)
    return classifier


def _from_checkpoint(args: argparse.Namespace) -> Classifier:
    model, checkpoint = load_model(args.checkpoint, use_ema=args.use_ema)
    if not checkpoint.get("classes") or "data_config" not in checkpoint:
        raise UserError(
            f"{args.checkpoint} has no class names or no data_config: expected a checkpoint "
            "written by resmlp_mt.vision.train; bare weights go to --weights."
        )
    data_config = dict(checkpoint["data_config"])
    if args.img_size is not None:
        if not isinstance(model, ResMLP):
            raise UserError("--img-size is for ResMLP alone: leave it out.")
        trained = {"model": model.state_dict(), "model_args": checkpoint["model_args"]}
        model = build_model(**{**checkpoint["model_args"], "img_size": args.img_size})
        assert isinstance(model, ResMLP)
        load_weights(model, trained)
        channels = data_config["input_size"][0]
        data_config["input_size"] = (channels, args.img_size, args.img_size)
    has_ema = checkpoint.get("model_ema") is not None
    return Classifier(
        model=model,
        name=str(args.checkpoint),
        weights="model_ema" if args.use_ema and has_ema else "model",
        classes=list(checkpoint["classes"]),
        data_config=data_config,
        data=checkpoint.get("config", {}).get("data"),
    )


def _from_weights(args: argparse.Namespace) -> Classifier:
    if not args.use_ema:
        raise UserError(
            "--no-use-ema is for the checkpoints of resmlp_mt.vision.train: give one without "
            "--model and --weights."
        )
    sizes = {"img_size": args.img_size, "patch_size": args.patch_size}
    given = {name: size for name, size in sizes.items() if size is not None}
    model_args = {"name": args.model, "num_classes": args.num_classes, **given}
    model = build_model(**model_args | args.model_kwargs)
    data_config: dict[str, Any]
    source: Any = args.weights
    if source.startswith(TIMM):
        source = hub_weights(source)
    if isinstance(model, ResMLP):
        load_weights(model, source)
        data_config = {
            "input_size": (3, *model.img_size),
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "interpolation": "bicubic",
            "crop_pct": 0.9,  # section 3.1 of the paper
        }
    else:
        try:
            if isinstance(source, str):
                timm.models.load_checkpoint(model, source, weights_only=True)
            else:
                model.load_state_dict(source)
        except Exception as error:  # of a dozen types, as the files are
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--weights {args.weights} does not fit {args.model}: {reason}"
            ) from error
        data_config = timm.data.resolve_model_data_config(model)
    imagenet = ImageNetInfo()
    classes = imagenet.label_names() if args.num_classes == imagenet.num_classes() else None
    return Classifier(
        model, f"{args.model} {args.weights}", "model", classes, data_config, data=None
    )


def data_of(args: argparse.Namespace, classifier: Classifier) -> list[str]:
    """The words of ``--data``, by default those of the classifier's training.

    Raises:
        UserError: if there are none.
    """
    data: list[str] | None = args.data or classifier.data
    if data is None:
        raise UserError("no images: give --data DIR, cifar10-tar FILE, wds DIR or digits.")
    return data


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write a report; the file appears complete or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    with output_file(path) as temporary:
        text = json.dumps(report, indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def batches(
    dataset: ImageDataset, args: argparse.Namespace, counter: SkipCounter
) -> Iterator[tuple[Tensor, Tensor, list[BadImage]]]:
    """Batches of a dataset in its order, under a progress bar.

    Yields:
        images (batch, channels, height, width) on ``--device``, targets (batch,) on the CPU, and
        the bad images that the batch lacks.

    Raises:
        UserError: at a bad image, unless ``--on-error skip``.
    """
    loader = DataLoader(
        dataset, args.batch_size, num_workers=args.workers, collate_fn=collate,
        pin_memory=args.device.type == "cuda",
    )  # fmt: skip
    with tqdm(total=len(dataset), unit="image", disable=None, leave=False) as progress:
        for images, targets, bad in loader:
            counter.update(bad)
            yield images.to(args.device, non_blocking=True), targets, bad
            progress.update(len(targets) + len(bad))


def finite(outputs: Tensor, name: str) -> Tensor:
    """The outputs of a model, which have to be numbers, on the CPU as float32.

    Raises:
        UserError: if they are not.
    """
    outputs = outputs.float().cpu()
    if not outputs.isfinite().all():
        raise UserError(f"{name} computes values that are no finite numbers: its weights are bad.")
    return outputs


def machine(device: torch.device) -> dict[str, Any]:
    """What a time was measured on."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return {
        "machine": found[1] if found else platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def check_outputs(paths: Sequence[Path | None]) -> None:
    """Refuse output files that cannot be written, before any work is done.

    Raises:
        UserError: naming the file.
    """
    for path in paths:
        if path is not None:
            with output_file(path, keep=False):
                pass


@contextmanager
def output_file(path: Path, keep: bool = True) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place if all goes well.

    Args:
        path: the file to write.
        keep: False for a trial.

    Raises:
        UserError: if it cannot be written.
    """
    target = path.resolve()  # what a link points to is replaced, not the link
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.exists() and not target.is_file():
            raise FileExistsError(None, "it exists and is no file")  # a folder, or /dev/stdout
        temporary.touch()
        yield temporary
        if keep:
            os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}): choose another place.") from error
    finally:
        with suppress(OSError):  # there is none, or no folder that could hold it
            temporary.unlink()
