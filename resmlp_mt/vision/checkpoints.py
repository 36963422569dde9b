"""Checkpoints of the image models: written whole or not at all, read without running code.

A checkpoint is a dict of tensors and plain values:

=================  ===============================================================================
model              state dict
model_ema          state dict of the moving average, if there is one
model_args         keyword arguments of :func:`resmlp_mt.vision.model.create_model`
classes            list of the class names
data_config        input_size (channels, height, width), mean, std, interpolation, crop_pct
config             the resolved options of the training
=================  ===============================================================================

``last.pth`` holds what is needed to go on as well; see :mod:`resmlp_mt.vision.trainer`.
"""

import os
import pickle
import shutil
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from resmlp_mt.errors import UserError
from resmlp_mt.vision.model import create_model

TIMM = "timm:"
#: what PyTorch raises for files that are cut short, harmful, or of something else
BROKEN = (
    OSError, RuntimeError, ValueError, TypeError, AttributeError, EOFError, pickle.UnpicklingError
)  # fmt: skip


def save(state: dict[str, Any], path: str | Path) -> None:
    """Write ``state``; an earlier file of this name is replaced only by a complete one.

    Raises:
        UserError: if the file cannot be written, as on a full disk.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer turns some of the former into these
        with suppress(OSError):  # there may be no such folder
            partial.unlink()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        else:
            free = shutil.disk_usage(path.parent).free / 2**20
            reason = f"PyTorch's writer failed with {free:.0f} MiB of disk free"
        kept = "; the earlier checkpoint there is kept" if path.exists() else ""
        raise UserError(f"{path} cannot be written: {reason}{kept}.") from error


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of :mod:`resmlp_mt.vision.train` with PyTorch's safe loader.

    Raises:
        UserError: if there is no such file or it is not such a checkpoint.
    """
    try:
        with Path(path).open("rb") as file:
            try:
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            except (*BROKEN, KeyError) as error:
                raise UserError(
                    f"{path} is not a complete PyTorch file of tensors and plain values; expected "
                    "a checkpoint written by resmlp_mt.vision.train."
                ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not (isinstance(checkpoint, dict) and {"model", "model_args"} <= checkpoint.keys()):
        raise UserError(
            f"{path} is not a checkpoint of resmlp_mt.vision.train: model and model_args are "
            "missing; bare weights go to --weights."
        )
    return checkpoint


def build_model(name: str, num_classes: int, **model_args: Any) -> nn.Module:
    """One of our models, or any of timm's by ``timm:NAME``.

    Raises:
        UserError: if there is no such model or it does not take the arguments.
    """
    try:
        if name.startswith(TIMM):
            model: nn.Module = timm.create_model(
                name.removeprefix(TIMM), num_classes=num_classes, **model_args
            )
            return model
        return create_model(name, num_classes=num_classes, **model_args)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"--model {name}: {error}") from error


def load_model(path: str | Path, use_ema: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a checkpoint, in evaluation mode; returns it and the checkpoint.

    Args:
        path: a file written by :mod:`resmlp_mt.vision.train`.
        use_ema: take the moving average of the weights, where the checkpoint has one.

    Raises:
        UserError: as :func:`load`, or if weights and model do not fit.
    """
    checkpoint = load(path)
    model = build_model(**checkpoint["model_args"])
    weights = checkpoint["model_ema"] if use_ema and "model_ema" in checkpoint else None
    try:
        model.load_state_dict(checkpoint["model"] if weights is None else weights)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 200)
        raise UserError(f"{path} does not fit its own model_args: {reason}") from error
    return model.eval(), checkpoint
