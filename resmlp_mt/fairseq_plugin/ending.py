"""Lets a training begin, save its last epoch, and do nothing when it is started after its end."""

import inspect
import logging
import math
import time
from types import SimpleNamespace
from typing import Any

import fairseq.trainer
from fairseq import checkpoint_utils
from fairseq.trainer import Trainer

from resmlp_mt.fairseq_plugin.remedies import Original, wrap

logger = logging.getLogger(__name__)


def apply() -> None:
    """Mend the ends of trainings; a second call does nothing."""
    wrap(Trainer, "get_lr", _get_lr)
    wrap(Trainer, "lr_step", _lr_step)
    wrap(Trainer, "load_checkpoint", _load_checkpoint)
    # --stop-time-hours would follow a clock that is set forward or back
    fairseq.trainer.time = SimpleNamespace(time=time.monotonic)


# --- --stop-min-lr would end a training before its first update, because a warm-up begins at 0 ---


def _get_lr(original: Original, self: Any) -> Any:
    """The learning rate; before the first update, it is at least above ``--stop-min-lr``."""
    rate = original(self)
    lowest = self.cfg.optimization.stop_min_lr
    if self.get_num_updates() == 0 and rate <= lowest:
        return math.nextafter(lowest, math.inf)
    return rate


# --- --max-epoch and --stop-min-lr would lose the epochs after the last of --save-interval ---


def _lr_step(original: Original, self: Any, epoch: int, val_loss: float | None = None) -> Any:
    """Save the epoch that has ended if it is the last one, and was not saved.

    fairseq calls this after every epoch, unless ``--max-update`` or another limit has stopped it.
    """
    saves = getattr(self, "stopping_saves", None)  # since the last update; there may be none yet
    unsaved = saves is not None and val_loss not in saves
    options = self.cfg.optimization
    is_last = epoch >= (options.max_epoch or math.inf)
    if unsaved and is_last:
        save(self, val_loss)
    rate = original(self, epoch, val_loss)
    if unsaved and not is_last and rate <= options.stop_min_lr:
        save(self, val_loss)
    return rate


def save(trainer: Any, score: float | None) -> None:
    """Save the last checkpoint, and with the score of a validation also the best if it is that."""
    iterator = trainer.stopping_iterator
    checkpoint_utils.save_checkpoint(trainer.cfg.checkpoint, trainer, iterator, score)


# --- a training that has ended would train another update, or epoch, at every new start ---


def _load_checkpoint(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    found = original(self, *args, **kwargs)
    self.is_validated = found is not None and found.get("val_loss") is not None
    return found


def train(original: Original, cfg: Any, trainer: Any, task: Any, epoch_itr: Any) -> Any:
    """Train an epoch, unless the training has ended before; then only validate, if that is missing.

    It is missing if the training was killed within it, after it was told to stop.

    Args:
        original: ``train`` of fairseq-train, which is called for every epoch.

    Returns:
        The validation losses, and whether the training has ended.
    """
    names = inspect.unwrap(original).__globals__
    end = _end(cfg, trainer, getattr(names["should_stop_early"], "num_runs", 0))
    if end is None:
        return original(cfg, trainer, task, epoch_itr)
    logger.info("%s: this training has ended before, and nothing is left to do", end)
    validates = trainer.get_num_updates() >= cfg.dataset.validate_after_updates
    if trainer.is_validated or cfg.dataset.disable_validation or not validates:
        return [None], True
    epoch_itr.next_epoch_itr()  # whose position is saved
    subsets = cfg.dataset.valid_subset.split(",")
    return names["validate_and_save"](cfg, trainer, task, epoch_itr, subsets, False)


def _end(cfg: Any, trainer: Any, validations: int) -> str | None:
    """The option that has ended the training before; the same in all processes.

    Args:
        validations: how many in a row did not improve the best score.
    """
    options = cfg.optimization
    reached = {
        f"--max-update {options.max_update}": (options.max_update, trainer.get_num_updates()),
        f"--patience {cfg.checkpoint.patience}": (cfg.checkpoint.patience, validations),
        f"--stop-time-hours {options.stop_time_hours}": (
            options.stop_time_hours,
            trainer._previous_training_time / 3600,  # until the checkpoint
        ),
    }
    return next((name for name, (end, now) in reached.items() if 0 < end <= now), None)
