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

So that a training continues inside an epoch, ``last.pth`` also has ``optimizer``, ``scheduler``,
``plateau`` and ``restore_lr`` (of ``--sched plateau``), ``scaler``, ``position`` (the epoch, the
step in it, the running sums), ``history`` (the rows of summary.csv), and ``world_size`` and
``steps_per_epoch``, which give the position its meaning. ``teacher`` is the digest of the teacher
of a distillation. Random numbers need no state: see :mod:`.loader`.
"""

import hashlib
import logging
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resmlp_mt import tensor_files
from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.vision.state_dicts import read_file

if TYPE_CHECKING:
    from resmlp_mt.vision.trainer import Trainer

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
    kept = "; the earlier checkpoint there is kept" if path.exists() else ""
    with refused(lambda error: f"{path} cannot be written: {reason(error)}{kept}.", OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        tensor_files.write(contents, path)


def load(path: str | Path, instead: str = ELSEWHERE) -> dict[str, Any]:
    """Read a checkpoint of :mod:`resmlp_mt.vision.train` with PyTorch's safe loader.

    A file of version 0.1.0 has no digest: it is read with a warning.

    Raises:
        UserError: if the file is missing, is not such a checkpoint, or was changed or damaged
            since it was written.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder: give the best.pth or last.pth of a training.")
    # those of other trainers hold more: the message below says what to do with them
    checkpoint = read_file(Path(path))
    for name, (kind, required) in PARTS.items():
        value = checkpoint.get(name)
        if not isinstance(value, kind) and (required or value is not None):
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


@dataclass
class Position:
    """Where the training is, and the running sums of its epoch.

    ``best`` is the best accuracy of the epochs from ``counted`` on, -1 before the first.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best: float = -1.0
    counted: int = 0


def state_of(trainer: "Trainer") -> dict[str, Any]:
    """The entries of ``last.pth`` from which a training goes on as it is now."""
    # timm's schedule saves neither the current plateau nor the rates before the noise
    plateau = getattr(trainer.scheduler, "lr_scheduler", None)
    return {
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict() if trainer.scheduler else None,
        "plateau": plateau.state_dict() if plateau else None,
        "restore_lr": getattr(trainer.scheduler, "restore_lr", None),
        "scaler": trainer.scaler.state_dict(),
        "position": asdict(trainer.position),
        "history": trainer.history,
        "world_size": trainer.process.world_size,
        "steps_per_epoch": len(trainer.batches),
        "teacher": trainer.teacher,
    }


def resume(trainer: "Trainer", state: dict[str, Any], path: Path) -> None:
    """Go back to where a training was saved.

    Raises:
        UserError: if the checkpoint is not a ``last.pth``, or has another model, teacher, other
            classes, or another number of processes or images.
    """
    if "position" not in state:
        raise UserError(f"--resume {path} cannot be continued: give a last.pth.")
    if state.get("classes", trainer.description["classes"]) != trainer.description["classes"]:
        raise UserError(
            f"--resume {path} was trained with other classes than --data has; give the data "
            "of that training."
        )
    # checkpoints of earlier versions lack the entries below
    if state.get("teacher", trainer.teacher) != trainer.teacher:
        raise UserError(
            f"--resume {path} learned from another teacher than --teacher names; give the same "
            "weights, wherever they are now."
        )
    for key, found, what in (
        ("world_size", trainer.process.world_size, "processes"),
        ("steps_per_epoch", len(trainer.batches), "steps per epoch"),
    ):
        if state.get(key, found) != found:
            raise UserError(
                f"--resume {path} was trained with {state[key]} {what}, but here there are "
                f"{found}; continue with the same number of processes and the same data."
            )
    with refused(
        lambda error: (
            f"--resume {path} does not fit the options given: {textwrap.shorten(str(error), 200)}."
        ),
        *(KeyError, RuntimeError, TypeError, ValueError, AttributeError),
    ):
        trainer.model.load_state_dict(state["model"])
        if trainer.ema:
            trainer.ema.module.load_state_dict(state["model_ema"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        if trainer.scheduler:
            trainer.scheduler.load_state_dict(state["scheduler"])
            if state.get("plateau"):
                trainer.scheduler.lr_scheduler.load_state_dict(state["plateau"])
                trainer.scheduler.restore_lr = state.get("restore_lr")
        trainer.scaler.load_state_dict(state.get("scaler") or {})
        trainer.position = Position(**state["position"])
        trainer.history = list(state["history"])
