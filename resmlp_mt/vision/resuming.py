"""What ``last.pth`` has so that a training continues inside an epoch.

Besides the entries that :mod:`resmlp_mt.vision.checkpoints` lists, these are ``optimizer``,
``scheduler``, ``plateau`` and ``restore_lr`` (of ``--sched plateau``), ``scaler``, ``position``
(the epoch, the step in it, the running sums), ``history`` (the rows of summary.csv), and
``world_size`` and ``steps_per_epoch``, which give the position its meaning. ``teacher`` is the
digest of the teacher of a distillation. Random numbers need no state: see :mod:`.loader`.
"""

import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resmlp_mt.errors import UserError, refused

if TYPE_CHECKING:
    from resmlp_mt.vision.trainer import Trainer


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
    """These entries, for a training as it is now."""
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
