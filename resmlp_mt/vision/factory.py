"""Makes image models, ours and timm's, by name or from a checkpoint."""

import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resmlp_mt.command_line import did_you_mean
from resmlp_mt.errors import UserError, is_of_memory, refused
from resmlp_mt.vision.checkpoints import ELSEWHERE, load
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.model import ResMLP
from resmlp_mt.vision.presets import HUB_NAMES, MODELS, TIMM_NAMES, is_ours, untagged
from resmlp_mt.vision.transforms import LARGEST_SIDE
from resmlp_mt.vision.weights import TIMM, hub_weights, load_weights, no_weights

#: preparation of images in the paper's evaluation (section 3.1)
IMAGENET = {
    "mean": timm.data.IMAGENET_DEFAULT_MEAN,
    "std": timm.data.IMAGENET_DEFAULT_STD,
    "interpolation": "bicubic",
    "crop_pct": 0.9,
}
#: the layer that embeds the patches; its weight is the flattened kernel of a convolution
FIRST_CONV = "patch_embed.proj"
#: arguments of timm's factory that open files or addresses, or change what it makes or where
OPENING = re.compile(
    r"pretrained|checkpoint_path|cache|cfg|file|url|hub|_dir$|pruned|features_only|^device$|^dtype$"
)


def create_model(
    name: str,
    num_classes: int = 1000,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path: float = 0.0,
    pooling: str = "mean",
    mixing: str = "linear",
    norm: str = "affine",
    layer_scale_init: float | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> ResMLP:
    """A model of :data:`MODELS` with random weights.

    Args:
        name: ``resmlp_s12``, ``resmlp_s24``, ``resmlp_s36``, ``resmlp_b24``, ``resmlp_tiny``, or
            timm's name of one of them; the tag of some weights may follow.
        num_classes: outputs of the classifier; with 0, the model returns features.
        img_size: side, or (height, width), of the images in pixels; by default 224, or 32 for
            ``resmlp_tiny``.
        patch_size: side of a patch in pixels; by default 16, or 4 for ``resmlp_tiny``.
        in_chans: channels of the images.
        drop_rate: dropout before the classifier.
        drop_path: probability that a residual branch is dropped in training, in all layers.
        pooling: ``"mean"``, or ``"class_mlp"``: two class layers after the others.
        mixing: ``"linear"``, ``"none"``, ``"mlp"``, ``"conv"``, ``"depthwise"`` or
            ``"separable"``.
        norm: ``"affine"`` or ``"layernorm"``, before the sublayers and at the end.
        layer_scale_init: initial scale after every sublayer; by default the authors'.
        device: of the parameters; by default PyTorch's.
        dtype: of the parameters; by default float32.

    Raises:
        ValueError: for an unknown name or tag, or an impossible value.
    """
    own, different = TIMM_NAMES.get(untagged(name), (untagged(name), {}))
    if own not in MODELS:
        raise ValueError(f"there is no model {name!r}{_similar(name, MODELS)}.")
    preset = MODELS[own]
    if tag := name.partition(".")[2]:
        hub_name = HUB_NAMES.get(untagged(name))
        tagged = timm.models.get_arch_pretrained_cfgs(hub_name) if hub_name else ()
        tags = [each.partition(".")[2] for each in tagged]
        if tag not in tags:
            known = ", ".join(tags) or "none"
            raise ValueError(f"there are no weights with the tag {tag!r}; its tags: {known}.")
    size = preset.img_size if img_size is None else img_size
    if not isinstance(size, int) and len(size) != 2:
        raise ValueError(f"img_size must be a side, or height and width, but is {size}.")
    if patch_size is None:
        patch_size = different.get("patch_size", preset.patch_size)
    with nullcontext() if device is None else torch.device(device):
        model = ResMLP(
            img_size=(size, size) if isinstance(size, int) else (size[0], size[1]),
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=preset.embed_dim,
            depth=preset.depth,
            drop_rate=drop_rate,
            drop_path=drop_path,
            pooling=pooling,
            mixing=mixing,
            norm=norm,
            layer_scale_init=(
                preset.layer_scale_init if layer_scale_init is None else layer_scale_init
            ),
        )
    model.to(dtype=dtype)
    model.default_cfg = {
        **default_config(own),
        "num_classes": num_classes,
        "input_size": (in_chans, *model.img_size),
    }
    model.pretrained_cfg = model.default_cfg
    return model


def default_config(name: str) -> dict[str, Any]:
    """timm's ``default_cfg`` for one of :data:`MODELS`."""
    size = MODELS[name].img_size
    return {
        "architecture": name,
        "num_classes": 1000,
        "input_size": (3, size, size),
        "fixed_input_size": True,
        "pool_size": None,
        "first_conv": FIRST_CONV,
        "classifier": "head",
        "crop_mode": "center",
        **IMAGENET,
    }


def pretrained_cfg(name: str) -> dict[str, Any]:
    """What timm says of a model, ours or timm's, and its weights in the hub.

    Raises:
        UserError: if there are no weights with the model's tag.
    """
    plain = untagged(name)
    if is_ours(name):
        return default_config(TIMM_NAMES[plain][0] if plain in TIMM_NAMES else plain)
    with refused(lambda error: f"--model {name}: {error}", RuntimeError):
        found = timm.models.get_pretrained_cfg(name.removeprefix(TIMM))
    config: dict[str, Any] = (found or timm.models.PretrainedCfg()).to_dict()
    return config


def build_model(
    name: str, num_classes: int, pretrained: bool = False, **model_args: Any
) -> nn.Module:
    """One of our models, also under timm's name, or any of timm's; ``timm:NAME`` is timm's code.

    Raises:
        UserError: if there is no such model, it does not take the arguments or lacks a package, or
            the hub has no weights for it.
    """
    check_name(name)
    plain = name.removeprefix(TIMM)
    known = is_ours(name)
    opening = sorted(key for key in model_args if OPENING.search(key))
    if opening:
        raise UserError(
            f"--model {name}: {opening[0]} cannot be given as an argument of a model; use "
            "--pretrained, --weights or --device."
        )
    try:
        if not known:
            model: nn.Module = timm.create_model(
                plain, pretrained=pretrained, num_classes=num_classes, **model_args
            )
            return model
        own = create_model(name, num_classes=num_classes, **model_args)
    except Exception as error:  # models raise a dozen types for arguments that they do not take
        if is_of_memory(error):
            raise
        of_model = ValueError | TypeError | RuntimeError | AssertionError | ImportError
        if pretrained and not isinstance(error, of_model):
            raise UserError(no_weights(f"--model {name} --pretrained", error)) from error
        raise UserError(f"--model {name}: {_short(error)}") from error
    if pretrained:
        load_pretrained(own, name)
    return own


def input_arguments(
    name: str, img_size: int | tuple[int, int] | None, patch_size: int | None
) -> dict[str, Any]:
    """The sizes for :func:`build_model`: timm's models for any size have no ``img_size``."""
    timms = timm.models.get_pretrained_cfg(untagged(name.removeprefix(TIMM)))
    given: dict[str, Any] = {}
    if img_size is not None and (is_ours(name) or (timms is not None and timms.fixed_input_size)):
        given["img_size"] = img_size
    if patch_size is not None:
        given["patch_size"] = patch_size
    return given


def check_name(name: str, flag: str = "--model") -> None:
    """Refuse what is not the name of a model.

    Raises:
        UserError: naming the option that has the name.
    """
    plain = name.removeprefix(TIMM)
    if not (is_ours(name) or timm.models.is_model(plain)):
        names = [*MODELS, *timm.models.list_models()]
        instead = f": name its architecture, and give {name} to --weights" if ":" in plain else ""
        raise UserError(f"{flag} {name}: there is no such model{_similar(plain, names)}{instead}.")


def load_pretrained(model: ResMLP, name: str) -> None:
    """Load timm's weights for one of our models; a classifier with other outputs is left out.

    Raises:
        UserError: if the hub has no weights, or they do not fit.
    """
    plain, dot, tag = name.partition(".")
    hub_name = HUB_NAMES.get(plain)
    if hub_name is None:
        raise UserError(
            f"--model {name}: there are no pre-trained weights; models with weights are "
            f"{', '.join(TIMM_NAMES)}."
        )
    weights = hub_weights(f"{TIMM}{hub_name}{dot}{tag}")
    same = model.num_classes == len(weights["head.weight"])
    load_weights(model, weights, head="keep" if same else "reset")


def load_model(
    path: str | Path,
    use_ema: bool = True,
    img_size: int | tuple[int, int] | None = None,
    instead: str = ELSEWHERE,
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a checkpoint, in evaluation mode; returns it and the checkpoint.

    The sizes in the checkpoint are compared with its tensors before the model is built.

    Args:
        path: a file written by :mod:`resmlp_mt.vision.train`.
        use_ema: take the moving average of the weights, if the checkpoint has one.
        img_size: adapt a ResMLP to images of this size; timm's models for any size stay as they
            are.
        instead: see :func:`resmlp_mt.vision.checkpoints.load`.

    Raises:
        UserError: as :func:`resmlp_mt.vision.checkpoints.load`, or if the weights do not fit the
            model, or the model takes no other size.
    """
    checkpoint = load(path, instead)
    average = checkpoint.get("model_ema") if use_ema else None
    weights = checkpoint["model"] if average is None else average
    args = dict(checkpoint["model_args"])
    _check_args(args, weights, path)
    if is_ours(args["name"]):
        args["name"] = untagged(args["name"])  # no weights are asked for
    try:
        with torch.device("meta"):  # nothing is allocated yet
            shapes = {key: value.shape for key, value in build_model(**args).state_dict().items()}
    except Exception as error:  # models raise a dozen types for impossible sizes
        raise UserError(
            f"{path}: no model can be built from its model_args: {_short(error)}"
        ) from error
    given = {key: value.shape for key, value in weights.items()}
    if given != shapes:
        wrong = sorted(key for key in given.keys() | shapes if given.get(key) != shapes.get(key))
        raise UserError(
            f"{path} does not fit its own model_args: {wrong[0]} is "
            f"{_shape(given.get(wrong[0]))} in the file and {_shape(shapes.get(wrong[0]))} in the "
            "model."
        )
    other = input_arguments(args["name"], img_size, None)
    model = build_model(**args | other)
    if not other:
        model.load_state_dict(weights)
    elif isinstance(model, ResMLP):
        load_weights(model, {"model": weights, "model_args": args})
    else:
        raise UserError(
            f"--img-size {img_size}: {path} has the model {args['name']}, which is made for one "
            "size: leave it out."
        )
    return model.eval(), checkpoint


def _check_args(args: Mapping[str, Any], weights: Mapping[str, Any], path: str | Path) -> None:
    """Refuse arguments in a file that could open a file or address, or build too large a model."""
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} holds no state dict of tensors.")
    sizes = [size for value in weights.values() for size in value.shape]
    # of an argument, unless the tensors are larger: a side of an image
    largest = max([LARGEST_SIDE, len(weights), *sizes])

    def check(key: str, value: Any) -> None:
        allowed = value is None or isinstance(value, bool | float)
        if isinstance(value, int) and not isinstance(value, bool):
            allowed = -1 <= value <= largest
        elif isinstance(value, str):
            allowed = re.fullmatch(r"[\w.+-]*", value.removeprefix(TIMM)) is not None
        elif isinstance(value, list | tuple):
            allowed = True
            for part in value:
                check(key, part)
        elif isinstance(value, Mapping):
            allowed = True
            for name, part in value.items():
                check(f"{key}.{name}", part)
        if not allowed or OPENING.search(key):
            shown = textwrap.shorten(repr(value), 80)
            raise UserError(f"{path}: its model_args have {key} = {shown}, which is not allowed.")

    for name, value in args.items():
        check(str(name), value)
    missing = {"name", "num_classes"} - args.keys()
    if missing or not isinstance(args["name"], str) or not isinstance(args["num_classes"], int):
        raise UserError(f"{path}: its model_args do not name a model and its number of classes.")


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else str(tuple(shape))


def _similar(name: str, names: Iterable[str]) -> str:
    plain = untagged(name).lower().replace("-", "_")  # ResMLP-S12 is the paper's name
    return did_you_mean(plain, names)


def _short(error: BaseException) -> str:
    """The first part of a library's message, without the code around it."""
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unexpected:
        known = ", ".join(list(inspect.signature(create_model).parameters)[2:])
        return f"it has no argument {unexpected[1]}; ours have {known}."
    return textwrap.shorten(str(error) or "it refuses these arguments without saying why.", 200)
