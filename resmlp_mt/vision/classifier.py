"""A trained model with its preparation of images and the names of its outputs."""

import copy
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError, is_of_memory, reason
from resmlp_mt.vision.checkpoints import ELSEWHERE
from resmlp_mt.vision.class_map import imagenet_names, read_class_map
from resmlp_mt.vision.evaluation_options import DataChoice, ModelChoice
from resmlp_mt.vision.factory import build_model, input_arguments, load_model, pretrained_cfg
from resmlp_mt.vision.folding import can_be_folded, folded
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.model import ResMLP
from resmlp_mt.vision.transforms import check_data_config
from resmlp_mt.vision.weights import ClassifierError, Stored, load_weights

#: options that a checkpoint leaves no place for
OF_WEIGHTS = (
    "model", "weights", "pretrained", "num_classes", "class_map", "patch_size", "model_kwargs",
)  # fmt: skip


@dataclass
class Classifier:
    """A model in evaluation mode, with its preparation of images and the names of its outputs.

    Attributes:
        model: images (batch, channels, height, width) -> logits (batch, classes).
        name: the checkpoint, or the model and its weights.
        weights: which weights of a checkpoint these are, "model" or "model_ema".
        classes: name of each output; None if the weights have no names.
        data_config: how images are prepared, as in timm.
        data: what ``--data`` says, by default the training data; empty if unknown.
        train_split, val_split: the parts of the data for training and validation.
        dtype: type of the products that compute the logits: float32, bfloat16 or int8.
        select: the class map that chose the classes, for messages; the data may have others. Empty
            if none did.
        assumed: ``classes`` are those of ImageNet, because the weights have as many and no names.
    """

    model: nn.Module
    name: str
    weights: str
    classes: list[str] | None
    data_config: dict[str, Any]
    data: list[str]
    train_split: str = "train"
    val_split: str = "val"
    dtype: str = "float32"
    select: str = ""
    assumed: bool = False

    @property
    def num_classes(self) -> int:
        """The number of outputs."""
        return int(self.model.num_classes)  # type: ignore[arg-type]

    def logits(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) -> (batch, classes), on the CPU as float32.

        Raises:
            UserError: if the model computes no finite numbers.
        """
        if self.dtype == "bfloat16":
            images = images.bfloat16()
        return self._finite(self._folded(images))

    @cached_property
    def _folded(self) -> nn.Module:
        """The model with its affine maps folded if possible; features use the original."""
        dtype = torch.bfloat16 if self.dtype == "bfloat16" else None
        if can_be_folded(self.model):
            return folded(self.model, dtype, int8=self.dtype == "int8")
        if self.dtype == "int8":
            raise UserError(
                "--dtype int8 is for ResMLPs with affine maps, linear mixing and mean pooling: "
                "use float32 or bfloat16."
            )
        return self.model if dtype is None else copy.deepcopy(self.model).to(dtype=dtype)

    def features(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) -> input of the last layer, (batch, dim).

        Raises:
            UserError: if the model computes no finite numbers.
        """
        model: Any = self.model
        return self._finite(model.forward_head(model.forward_features(images), pre_logits=True))

    def _finite(self, outputs: Tensor) -> Tensor:
        outputs = outputs.float().cpu()
        if not outputs.isfinite().all():
            raise UserError(
                f"{self.name} computes values that are not finite numbers: use other weights."
            )
        return outputs


def load_classifier(
    choice: ModelChoice,
    device: torch.device,
    dtype: str = "float32",
    use_test_size: bool = False,
    head: Literal["keep", "reset"] = "keep",
) -> Classifier:
    """The model that the options name, on the device.

    Args:
        use_test_size: prepare images for a model of timm in its size for tests, if it has one.
        head: ``"reset"`` for features alone: weights need no classifier, or may have any.

    Raises:
        UserError: if they do not name a model, its file cannot be used, or it cannot be computed in
            this type.
    """
    if dtype == "int8" and device.type != "cpu":
        raise UserError(
            f"--dtype int8 is for CPUs, not for {device}: give --device cpu, or --dtype bfloat16."
        )
    if choice.checkpoint is not None:
        usual = ModelChoice()
        if any(getattr(choice, name) != getattr(usual, name) for name in OF_WEIGHTS):
            *flags, last = map(flag, OF_WEIGHTS)
            raise UserError(
                f"{choice.checkpoint} is a checkpoint and knows its model: leave out "
                f"{', '.join(flags)} and {last}, or the checkpoint."
            )
        classifier = _from_checkpoint(choice)
    elif choice.model is not None and (choice.weights is not None or choice.pretrained):
        classifier = _from_weights(choice, use_test_size, head)
    else:
        raise UserError(
            "no model: give a checkpoint, before options that take several values, or --model "
            "NAME with --weights FILE or --pretrained."
        )
    if isinstance(choice, DataChoice):
        classifier.data = choice.data or classifier.data
        if not classifier.data:
            raise UserError("no images: give --data DIR, cifar10-tar FILE, wds DIR or digits.")
    classifier.model.eval().to(device)
    classifier.dtype = dtype
    config = classifier.data_config
    for key in ("crop_pct", "mean", "std", "interpolation"):
        if getattr(choice, key) is not None:
            config[key] = getattr(choice, key)
    check_data_config(config, classifier.name, config["input_size"][0])
    check_forward(classifier.model, classifier.name, config["input_size"], classifier.num_classes)
    return classifier


def _from_checkpoint(choice: ModelChoice) -> Classifier:
    assert choice.checkpoint is not None
    model, checkpoint = load_model(
        choice.checkpoint, use_ema=choice.use_ema, img_size=choice.img_size
    )
    if not checkpoint.get("classes") or checkpoint.get("data_config") is None:
        raise UserError(
            f"{choice.checkpoint} has no class names or no data_config: expected a checkpoint "
            f"written by resmlp_mt.vision.train; {ELSEWHERE}."
        )
    classes, outputs = checkpoint["classes"], int(model.num_classes)  # type: ignore[arg-type]
    if len(classes) != outputs or not all(isinstance(name, str) for name in classes):
        raise UserError(
            f"{choice.checkpoint} has {len(classes)} class names, which must be texts, one for "
            f"each of the {outputs} outputs of its model."
        )
    config = checkpoint.get("config") or {}
    data = config.get("data") or []
    splits = {key: config[key] for key in ("train_split", "val_split") if key in config}
    words = isinstance(data, list | tuple) and all(isinstance(word, str) for word in data)
    wrong = [f"{key} is not a text" for key in splits if not isinstance(splits[key], str)]
    wrong += [] if words else ["data is not a list of texts, as --data has them"]
    if wrong:
        raise UserError(f"{choice.checkpoint}: its config.{wrong[0]}.")
    data_config, channels = checkpoint["data_config"], checkpoint["model_args"].get("in_chans", 3)
    check_data_config(data_config, str(choice.checkpoint), channels)
    if choice.img_size is not None:
        data_config["input_size"] = (channels, choice.img_size, choice.img_size)
    size = tuple(data_config["input_size"][1:])
    if isinstance(model, ResMLP) and size != model.img_size:
        raise UserError(
            f"{choice.checkpoint}: its model takes images of {model.img_size} pixels, but its "
            f"data_config makes them {size}: take another copy."
        )
    has_ema = checkpoint.get("model_ema") is not None
    return Classifier(
        model=model,
        name=str(choice.checkpoint),
        weights="model_ema" if choice.use_ema and has_ema else "model",
        classes=list(classes),
        data_config=data_config,
        data=list(data),
        select="the class map of the training" if config.get("class_map") else "",
        **splits,
    )


def _from_weights(
    choice: ModelChoice, use_test_size: bool, head: Literal["keep", "reset"]
) -> Classifier:
    if not choice.use_ema:
        raise UserError(
            "--no-use-ema is for the checkpoints of resmlp_mt.vision.train: give one without "
            "--model and --weights."
        )
    assert choice.model is not None
    given = input_arguments(choice.model, choice.img_size, choice.patch_size)
    data = (choice.data or []) if isinstance(choice, DataChoice) else []
    folders = [Path(word) for word in data[-1:]]
    names = read_class_map(choice.class_map, folders) if choice.class_map else None
    in_hub = pretrained_cfg(choice.model)["num_classes"] if choice.weights is None else None
    num_classes = choice.num_classes or len(names or ()) or in_hub or 1000
    try:
        # timm would leave out a classifier of another size, and classify at random
        if head == "keep" and in_hub not in (None, num_classes):
            raise ClassifierError(
                f"{choice.model} --pretrained: its classifier has {in_hub} classes and the model "
                f"{num_classes}",
                in_hub,
            )
        model = build_model(
            choice.model,
            num_classes=num_classes,
            pretrained=choice.pretrained,
            **given | choice.model_kwargs,
        )
        stored = Stored() if choice.weights is None else load_weights(model, choice.weights, head)
    except ClassifierError as error:
        right = f"--num-classes {error.classes}" if error.classes else "weights that have one"
        if error.classes and choice.class_map:
            right = f"--class-map FILE with {error.classes} names"
        raise UserError(f"{error.found}: give {right}.") from error
    stored_names = stored.classes if head == "keep" else None
    known = names or stored_names
    names = known or imagenet_names(num_classes)
    if names is not None and len(names) != num_classes:
        source = f"--class-map {choice.class_map}" if choice.class_map else choice.weights
        raise UserError(
            f"{source} names {len(names)} classes, but --num-classes is {num_classes}: give "
            "--class-map FILE with as many."
        )
    data_config: dict[str, Any] = timm.data.resolve_model_data_config(
        model, args={"img_size": choice.img_size}, use_test_size=use_test_size
    )
    if isinstance(model, ResMLP):
        data_config["input_size"] = (3, *model.img_size)
    if stored.data_config is not None:
        size = {"input_size": data_config["input_size"]}
        is_sized = choice.img_size is not None or isinstance(model, ResMLP)
        data_config = stored.data_config | (size if is_sized else {})
    name = f"{choice.model} {choice.weights or 'pretrained'}"
    selects = "--class-map" if choice.class_map else ""
    return Classifier(
        model, name, "model", names, data_config, data=[], select=selects, assumed=not known
    )


@torch.no_grad()
def check_forward(model: nn.Module, name: str, input_size: Sequence[int], num_classes: int) -> None:
    """Run a model on an image (channels, height, width) before the work: not all take every size.

    Raises:
        UserError: if it does not take the image, or returns something else, or memory runs out.
    """
    mode = model.training
    image = torch.zeros(1, *input_size, device=next(model.parameters()).device)
    try:
        logits = model.eval()(image)
    except (ValueError, AssertionError, RuntimeError, AttributeError, TypeError) as error:
        if is_of_memory(error):
            raise UserError(
                f"there is not enough memory for {name} and one image: give another --device, a "
                "smaller model or a smaller --img-size."
            ) from error
        raise UserError(
            f"{name} does not take images of {input_size[1]} x {input_size[2]} pixels "
            f"(--img-size): {textwrap.shorten(reason(error), 200).rstrip('.')}."
        ) from error
    shape = getattr(logits, "shape", None)
    if shape != (1, num_classes):
        raise UserError(
            f"{name} does not return the scores of {num_classes} classes for an image, but "
            f"{type(logits).__name__} {'' if shape is None else tuple(shape)}; look at "
            "--model-kwargs."
        )
    model.train(mode)
