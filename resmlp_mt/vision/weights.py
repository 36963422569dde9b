"""Weights from files, from timm and from the authors' code, also of another resolution."""

import argparse
import logging
import math
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import timm
import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor
from torch.nn import functional as F

from resmlp_mt.errors import UserError
from resmlp_mt.vision.checkpoints import TIMM
from resmlp_mt.vision.model import ResMLP

logger = logging.getLogger(__name__)

# our name, timm's (MlpMixer with ResBlock), the authors' (resmlp_models.py)
NAMES = (
    ("patch_embed.proj.", "stem.proj.", "patch_embed.proj."),
    (".mixing_pre.", ".norm1.", ".norm1."),
    (".token_mixing.", ".linear_tokens.", ".attn."),
    (".mixing_post.alpha", ".ls1", ".gamma_1"),
    (".ffn_pre.", ".norm2.", ".norm2."),
    (".ffn.", ".mlp_channels.", ".mlp."),
    (".ffn_post.alpha", ".ls2", ".gamma_2"),
)
CONTAINERS = ("model_ema", "state_dict_ema", "model", "state_dict", "teacher")


def load_weights(
    model: ResMLP,
    source: Mapping[str, Any] | str | Path,
    head: Literal["keep", "reset"] = "keep",
) -> None:
    """Load the weights of an equal model, or of one for another resolution, into ``model``.

    Our names, timm's and the authors' are known. Files are .safetensors, or whatever PyTorch's
    safe loader reads, among them the checkpoints of :mod:`resmlp_mt.vision.train`; of several
    state dicts in a file the moving average (``model_ema``) comes first.

    Weights for another grid of patches are adapted: the hidden states are resized to the old
    grid, mixed there and resized back, all three in one matrix. So the rows and the columns of the
    mixing matrix are interpolated as images. The old grid is that of the checkpoint's
    ``model_args``, else it is taken to be square.

    Args:
        model: changed in place, and not at all where an error is raised.
        source: a state dict, a checkpoint that holds one, or a file.
        head: ``"reset"`` leaves the classifier of ``model`` as it is.

    Raises:
        UserError: if the file cannot be read safely, or the weights do not fit the model.
    """
    if isinstance(source, str | Path):
        name = str(source)
        source = _read(Path(source))
    else:
        name = "the state dict"
    state = own_names(_state_dict(source, name))
    expected = model.state_dict()
    if head == "reset":
        state |= {key: expected[key] for key in ("head.weight", "head.bias")}
    _check_head(state, expected, name)
    old_grid = _grid(source)
    _check_names(state, expected, name)
    for key, target in expected.items():
        square = key.endswith("token_mixing.weight") and state[key].dim() == 2
        if square and (old_grid not in (None, model.grid) or state[key].shape != target.shape):
            prefix = key.removesuffix("weight")
            class_block = key.startswith("class_blocks.")
            tokens = state[key].size(1) - class_block
            grid = old_grid or _square(tokens, name)
            weight, bias = state[key], state[prefix + "bias"]
            adapted = (
                _adapt_class_mixing(weight, bias, grid, model.grid)
                if class_block
                else adapt_mixing(weight, bias, grid, model.grid)
            )
            state[key], state[prefix + "bias"] = adapted
            if key == "blocks.0.token_mixing.weight":
                logger.info(
                    "%s: mixing matrices adapted from a grid of %d x %d patches to %d x %d",
                    name, *grid, *model.grid,
                )  # fmt: skip
    for key, target in expected.items():
        if state[key].shape != target.shape:
            raise UserError(
                f"{name}: {key} has the shape {tuple(state[key].shape)}, but the model needs "
                f"{tuple(target.shape)}: create the model with the sizes of these weights."
            )
    model.load_state_dict(state)


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of timm or of the authors under our names; ours is returned as it is.

    The kernel of the patch embedding is flattened, and the (1, 1, dim) of timm's affine maps.
    """
    foreign = 1 if "stem.proj.weight" in state else 2
    converted = {}
    for key, value in clean_state_dict(dict(state)).items():
        for names in NAMES:
            if key.startswith(names[foreign]) or (
                names[foreign].startswith(".") and names[foreign] in key
            ):
                key = key.replace(names[foreign], names[0])
                break
        if key == "patch_embed.proj.weight":
            value = value.flatten(1)
        elif key.endswith((".alpha", ".beta")):
            value = value.flatten()
        converted[key] = value
    return converted


def timm_names(model: ResMLP) -> dict[str, Tensor]:
    """The state dict of a model with mean pooling and linear mixing, as timm's has it.

    Raises:
        ValueError: if timm has no such model.
    """
    state = model.state_dict()
    if model.class_token is not None or "blocks.0.token_mixing.bias" not in state:
        raise ValueError("timm has ResMLP with mean pooling and linear mixing only.")
    converted = {}
    for key, value in state.items():
        if key == "patch_embed.proj.weight":
            value = value.unflatten(1, (-1, model.patch_size, model.patch_size))
        elif key.endswith((".alpha", ".beta")) and "_post." not in key:
            value = value.view(1, 1, -1)
        for ours, theirs, _ in NAMES:
            key = key.replace(ours, theirs)
        converted[key] = value
    return converted


def adapt_mixing(
    weight: Tensor, bias: Tensor, old: tuple[int, int], new: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Mixing on the grid ``new``: resize to ``old``, mix, resize back.

    Args:
        weight: (old rows * old columns) squared.
        bias: (old rows * old columns).
        old: rows and columns of patches in the given mixing.
        new: those of the returned one.

    Returns:
        weight and bias for the new grid.
    """
    up = _resize_matrix(old, new).to(weight)
    down = _resize_matrix(new, old).to(weight)
    return up @ weight @ down, up @ bias


def _adapt_class_mixing(
    weight: Tensor, bias: Tensor, old: tuple[int, int], new: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """As :func:`adapt_mixing`, for one row that reads the class token and the patches."""
    down = _resize_matrix(new, old).to(weight)
    return torch.cat((weight[:, :1], weight[:, 1:] @ down), dim=1), bias


def _resize_matrix(old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bilinear resizing of images as a matrix (new rows * columns, old rows * columns)."""
    images = torch.eye(old[0] * old[1]).unflatten(1, old).unsqueeze(1)
    return F.interpolate(images, new, mode="bilinear", antialias=True).flatten(1).T


def hub_weights(source: str) -> dict[str, Tensor]:
    """The state dict of timm's pre-trained model ``timm:NAME``.

    Raises:
        UserError: if the hub gives none.
    """
    try:
        name = source.removeprefix(TIMM)
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's client and its transports raise a dozen types
        raise UserError(
            f"--weights {source}: timm's hub gave no weights "
            f"({textwrap.shorten(str(error), 200)}); fetch them elsewhere and give the file."
        ) from error
    return state


def _read(path: Path) -> Mapping[str, Any]:
    """The contents of a weight file.

    Raises:
        UserError: if there is no such file, it is broken, or it is more than data.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: expected weights as .pth or .safetensors.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The authors' and timm's training checkpoints hold their options.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a complete .safetensors file: {error}.") from error
    except Exception as error:  # torch raises a dozen types for broken or unsafe files
        # The unpickler's own message goes on with how to load the file unsafely.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {code.group(1)}" if code else "it is broken or no PyTorch file"
        raise UserError(
            f"{path} was not loaded because {reason}: expected tensors and plain values only."
        ) from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds no state dict, but a {type(loaded).__name__}.")
    return loaded


def _state_dict(source: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    for container in CONTAINERS:
        if isinstance(source.get(container), Mapping):
            source = source[container]
            break
    if not source or not all(isinstance(value, Tensor) for value in source.values()):
        raise UserError(f"{name} holds no state dict of tensors.")
    return dict(source)


def _grid(source: Mapping[str, Any]) -> tuple[int, int] | None:
    """The grid of patches of a checkpoint, where it says so."""
    args = source.get("model_args")
    if not (isinstance(args, Mapping) and args.get("img_size") and args.get("patch_size")):
        return None
    size = args["img_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return height // args["patch_size"], width // args["patch_size"]


def _square(tokens: int, name: str) -> tuple[int, int]:
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(
            f"{name}: its mixing matrices are for {tokens} patches, which are no square grid: "
            "create the model with the img_size of these weights."
        )
    return side, side


def _check_head(state: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    if "head.weight" not in state:
        raise UserError(f'{name} has no classifier: load it with head="reset" (--reset-head).')
    given, wanted = len(state["head.weight"]), len(expected["head.weight"])
    if given != wanted:
        raise UserError(
            f"{name}: its classifier has {given} classes and the model {wanted}: load it with "
            'head="reset" (--reset-head), or create the model with num_classes of these weights.'
        )


def _check_names(state: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        examples = [f"{key} is missing" for key in missing[:1]]
        examples += [f"{key} is unknown" for key in unknown[:1]]
        raise UserError(
            f"{name} does not fit the model ({len(missing)} names missing, {len(unknown)} unknown; "
            f"{', '.join(examples)}): create the model of these weights."
        )
