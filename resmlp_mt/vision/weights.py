"""Loads weights from files, from timm and from the authors' code, also of another resolution.

:mod:`resmlp_mt.vision.state_dicts` finds them in the files of many trainers.
"""

import logging
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resmlp_mt.errors import UserError, refused
from resmlp_mt.vision.class_map import names_of_classes
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.model import ResMLP
from resmlp_mt.vision.options import of_hub
from resmlp_mt.vision.state_dicts import (
    checkpoint_grid,
    last_layers,
    own_names,
    read_weights,
    state_dict,
)
from resmlp_mt.vision.transforms import is_data_config

logger = logging.getLogger(__name__)

TIMM = "timm:"
#: what timm's ``pretrained_cfg`` says of the preparation of images
PREPARATION = (
    "input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode",
    "test_input_size", "test_crop_pct",
)  # fmt: skip


class Stored(NamedTuple):
    """What weights say of their training, as our checkpoints do; None if they do not."""

    classes: list[str] | None = None
    data_config: dict[str, Any] | None = None


class ClassifierError(UserError):
    """Weights without a classifier, or with one for another number of classes than the model has.

    Attributes:
        found: the fault, without its remedy, which callers name.
        classes: how many classes the weights have; 0 without a classifier.
    """

    def __init__(self, found: str, classes: int) -> None:
        other = f", or create the model with num_classes={classes}" if classes else ""
        super().__init__(f'{found}: load it with head="reset"{other}.')
        self.found, self.classes = found, classes


def load_weights(
    model: nn.Module,
    source: Mapping[str, Any] | str | Path,
    head: Literal["keep", "reset"] = "keep",
    option: str = "--weights",
) -> Stored:
    """Load the weights of the same model, or of a ResMLP for another resolution, into ``model``.

    A ResMLP's weights may have our names, timm's or the authors', and come from
    :mod:`resmlp_mt.vision.train` or another trainer; see :mod:`resmlp_mt.vision.state_dicts`.

    Weights for another grid of patches are adapted: the hidden states are resized to the old
    grid, mixed there and resized back, all three in one matrix. So the rows and columns of the
    mixing matrix are interpolated like images. The old grid is taken from the checkpoint's
    ``model_args``, else it is assumed to be square.

    Weights of timm's hub, or in a folder of it, give the model their ``pretrained_cfg``: how images
    are prepared. :mod:`resmlp_mt.vision.train` stores a ``data_config`` instead, which is returned.

    Args:
        model: a ResMLP, or a model of timm, also in DataParallel, DistributedDataParallel or
            torch.compile; changed in place, but unchanged after an error.
        source: a state dict, a checkpoint that holds one, a file, a folder of the Hugging Face
            hub, or ``timm:NAME``, ``timm/NAME`` or ``hf-hub:OWNER/NAME`` for weights that timm
            fetches.
        head: ``"reset"`` keeps the classifier of ``model``.
        option: that named the source, for messages.

    Returns:
        what the source stores besides the weights.

    Raises:
        UserError: if the file cannot be read safely, the hub has no such weights, or they do not
            fit the model or are not finite.
    """
    name = "the state dict"
    if isinstance(source, str) and (in_hub := of_hub(source)):
        name, source = source, hub_weights(in_hub, option)
    elif isinstance(source, str) and "://" in source:
        raise UserError(f"{source} is an address: download it, and give the file.")
    elif isinstance(source, str | Path):
        name = str(source).removeprefix("local-dir:")  # timm's name for a folder of the hub
        source = read_weights(Path(name))
    if not isinstance(source, Mapping):
        raise UserError(
            f"{name} is of type {type(source).__name__}: give a state dict, a checkpoint that "
            "holds one, or a file."
        )
    model = timm.utils.unwrap_model(model)
    expected = model.state_dict()
    classifier = _classifier_names(model)
    state = state_dict(source, expected, name, classifier)
    if isinstance(model, ResMLP):
        state = own_names(state)
    if not classifier:  # the model returns features
        others = last_layers(state.keys() - expected.keys(), expected)
        state = {key: value for key, value in state.items() if key not in others}
    if head == "reset":
        state |= {key: expected[key] for key in classifier}
    if state.keys() & (expected.keys() - set(classifier)):  # else they are of something else
        _check_head(state, expected, classifier, name)
    for key in expected.keys() - state.keys():
        if key.endswith(".num_batches_tracked"):  # missing in files older than PyTorch 0.4.1
            state[key] = torch.zeros_like(expected[key])
    _check_names(state, expected, name)
    if isinstance(model, ResMLP):
        adapt(state, model, checkpoint_grid(source), name)
    # timm resizes what depends on the resolution while it fetches weights
    hint = ", or take those of timm's hub with --pretrained"
    if isinstance(model, ResMLP):
        kernel = state["patch_embed.proj.weight"].shape[1:].numel()
        side = math.isqrt(kernel // model.in_chans)
        hint = f" (their patches have {side} pixels a side)" if side != model.patch_size else ""
    for key, target in expected.items():
        if state[key].shape != target.shape:
            raise UserError(
                f"{name}: {key} has the shape {tuple(state[key].shape)}, but the model needs "
                f"{tuple(target.shape)}: create the model with the sizes of these weights{hint}."
            )
    for key, _ in model.named_parameters():
        if not state[key].isfinite().all():
            raise UserError(f"{name}: {key} has values that are not finite: take other weights.")
    model.load_state_dict(state)
    found = source.get("pretrained_cfg")
    config = found if isinstance(found, Mapping) else {}
    preparation = {key: config[key] for key in PREPARATION if config.get(key) is not None}
    if preparation:
        own = getattr(model, "pretrained_cfg", None) or {}
        rest = {key: value for key, value in own.items() if key not in PREPARATION}
        any_model: Any = model
        any_model.pretrained_cfg = rest | preparation
    data_config = source.get("data_config")
    return Stored(
        names_of_classes(source.get("classes")) or names_of_classes(config.get("label_names")),
        data_config if is_data_config(data_config) else None,
    )


def adapt_mixing(
    weight: Tensor,
    bias: Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    class_token: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mixing on the grid ``new``: resize to ``old``, mix, resize back.

    Args:
        weight: (old rows * old columns) squared; with a ``class_token``, one row for it and them.
        bias: (old rows * old columns).
        old: rows and columns of patches in the given mixing; ``new``: in the returned one.

    Returns:
        weight and bias for the new grid, float32 unless they were float64.
    """
    device, dtype = weight.device, torch.promote_types(weight.dtype, torch.float32)
    directions = (old, new), (new, old)
    up, down = (_resize_matrix(*sizes).to(device, dtype) for sizes in directions)
    weight, bias = weight.to(dtype), bias.to(device, dtype)
    if class_token:
        return torch.cat((weight[:, :1], weight[:, 1:] @ down), dim=1), bias
    return up @ weight @ down, up @ bias


def _resize_matrix(old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bilinear resizing of images as a matrix (new rows * columns, old rows * columns)."""
    images = torch.eye(old[0] * old[1]).unflatten(1, old).unsqueeze(1)
    return F.interpolate(images, new, mode="bilinear", antialias=True).flatten(1).T


def adapt(
    state: dict[str, Tensor], model: ResMLP, old_grid: tuple[int, int] | None, name: str
) -> None:
    """Adapt the mixing matrices in ``state`` to the grid of ``model``.

    Anything but a matrix with its bias stays as it is, and does not fit the model.
    """
    for key, target in model.state_dict().items():
        if not key.endswith("token_mixing.weight") or key not in state:
            continue
        class_block = key.startswith("class_blocks.")
        bias = key.removesuffix("weight") + "bias"
        (rows,) = state[bias].shape if state[bias].dim() == 1 else (0,)
        tokens = state[key].size(-1) - class_block if state[key].dim() else 0
        is_matrix = state[key].shape == (rows, tokens + class_block)
        if not is_matrix or rows != (1 if class_block else tokens) or tokens < 1:
            continue
        grid = old_grid if old_grid and math.prod(old_grid) == tokens else None
        if grid in (None, model.grid) and state[key].shape == target.shape:
            continue
        if grid is None:
            side = math.isqrt(tokens)
            grid = side, side
            if side * side != tokens:
                raise UserError(
                    f"{name}: its mixing matrices are for {tokens} patches, which do not make a "
                    "square grid: create the model with the img_size of these weights."
                )
        matrix = state[key], state[bias]
        state[key], state[bias] = adapt_mixing(*matrix, grid, model.grid, class_token=class_block)
        if key == "blocks.0.token_mixing.weight":
            logger.info(
                "%s: mixing matrices adapted from a grid of %d x %d patches to %d x %d",
                name, *grid, *model.grid,
            )  # fmt: skip


def _classifier_names(model: nn.Module) -> list[str]:
    """Names of the parameters of the last layer."""
    any_model: Any = model  # every model of timm has this method
    found = any_model.get_classifier()
    parts = found if isinstance(found, tuple) else (found,)  # a distilled model has two
    last = {id(parameter) for part in parts for parameter in part.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in last]


def _check_head(
    state: dict[str, Tensor], expected: dict[str, Tensor], classifier: list[str], name: str
) -> None:
    for key in classifier:
        if key not in state:
            raise ClassifierError(f"{name} has no classifier", 0)
        given, wanted = state[key].shape[:1].numel(), len(expected[key])
        if given != wanted:
            found = f"{name}: its classifier has {given} classes and the model {wanted}"
            raise ClassifierError(found, given)


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


def hub_weights(source: str, option: str = "--weights") -> dict[str, Any]:
    """The state dict of a model that timm fetches: ``timm:NAME`` or ``hf-hub:OWNER/NAME``.

    The model may also be one of ours, which somebody has put there.

    Its ``pretrained_cfg`` is added, except for timm's ResMLPs: ours are prepared as in the paper.

    Raises:
        UserError: if the hub does not return any.
    """
    from resmlp_mt.vision import timm_registration  # noqa: F401  it imports this module

    with refused(lambda error: no_weights(f"{option} {source}", error, option), Exception):
        model = timm.create_model(source.removeprefix(TIMM), pretrained=True)
    state: dict[str, Any] = model.state_dict()
    is_paper = source.startswith(f"{TIMM}resmlp_")
    return state if is_paper else {**state, "pretrained_cfg": model.pretrained_cfg}


def no_weights(given: str, error: Exception, option: str = "--weights") -> str:
    """The message for anything that the hub's client and its transports raise, a dozen types."""
    return (
        f"{given}: timm's hub gave no weights ({textwrap.shorten(str(error), 200)}); download "
        f"them elsewhere and give the file to {option}."
    )
