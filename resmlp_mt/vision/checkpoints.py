"""Checkpoints of the image models: written completely or not at all, read without running code.

A checkpoint is a dict of tensors and plain values:

=================  ===============================================================================
model              state dict
model_ema          state dict of the moving average, if there is one
model_args         keyword arguments of :func:`resmlp_mt.vision.factory.build_model`
classes            list of the class names
data_config        timm's: input_size, mean, std, interpolation, crop_pct, crop_mode
config             the resolved options of the training
digest             SHA-256 of all of the above, and of what ``last.pth`` has besides
=================  ===============================================================================

``last.pth`` also has what is needed to continue; see :mod:`resmlp_mt.vision.resuming`.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resmlp_mt import tensor_files
from resmlp_mt.errors import UserError, reason
from resmlp_mt.vision.state_dicts import PLAIN_TYPES

logger = logging.getLogger(__name__)

#: what to do with weights that are no such checkpoint
ELSEWHERE = "weights from elsewhere go to --weights, with --model NAME"
#: the entries of a checkpoint, with their types
PARTS: dict[str, tuple[type, bool]] = {  # name: type, required
    "model": (dict, True),
    "model_args": (dict, True),
    "model_ema": (dict, False),
    "classes": (list, False),
    "data_config": (dict, False),
    "config": (dict, False),
}


def save(state: Mapping[str, Any], path: str | Path) -> None:
    """Write ``state`` with its digest; a complete file replaces an earlier one.

    Raises:
        UserError: if the file cannot be written, for example on a full disk.
    """
    path = Path(path)
    contents = {name: value for name, value in state.items() if name != "digest"}
    contents["digest"] = digest(contents)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensor_files.write(contents, path)
    except OSError as error:
        kept = "; the earlier checkpoint there is kept" if path.exists() else ""
        raise UserError(f"{path} cannot be written: {reason(error)}{kept}.") from error


def load(path: str | Path, instead: str = ELSEWHERE) -> dict[str, Any]:
    """Read a checkpoint of :mod:`resmlp_mt.vision.train` with PyTorch's safe loader.

    A file of version 0.1.0 has no digest: it is read with a warning.

    Args:
        path: the file.
        instead: what to do with another one, for the message.

    Raises:
        UserError: if the file is missing, is not such a checkpoint, or was changed or damaged
            since it was written.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder: give the best.pth or last.pth of a training.")
    # those of other trainers hold more: the message below says what to do with them
    checkpoint = tensor_files.read(path, PLAIN_TYPES)
    for name, (kind, required) in PARTS.items():
        value = checkpoint.get(name)
        if value is None and not required:
            continue
        if not isinstance(value, kind):
            raise UserError(
                f"{path} is not a checkpoint of resmlp_mt.vision.train: {name} is "
                f"{'missing' if value is None else f'a {type(value).__name__}'}; {instead}."
            )
    if "digest" not in checkpoint:
        logger.warning("%s has no digest (version 0.1.0): damage would not be noticed.", path)
    elif checkpoint["digest"] != digest(checkpoint):
        raise UserError(
            f"{path} is damaged: its contents differ from what was written; take another copy."
        )
    return checkpoint


def digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of nested dictionaries, lists, plain values and tensors, without ``digest``."""
    total = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            dense = value.detach().cpu().contiguous()
            total.update(f"tensor {dense.dtype} {tuple(dense.shape)};".encode())
            total.update(dense.reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            total.update(f"dict {len(value)};".encode())
            for key, part in value.items():
                add(key)
                add(part)
        elif isinstance(value, list | tuple):
            total.update(f"list {len(value)};".encode())
            for part in value:
                add(part)
        else:
            total.update(f"{type(value).__name__} {value!r};".encode())

    add({name: value for name, value in state.items() if name != "digest"})
    return total.hexdigest()
