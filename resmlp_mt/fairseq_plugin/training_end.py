"""Lets a training begin, and save its last epoch. Started again after its end, it does nothing.

If its options differ then, a warning names them.
"""

import inspect
import logging
import math
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from fairseq import checkpoint_utils
from fairseq.data.iterators import EpochBatchIterator
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.resuming import early_stop
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy

logger = logging.getLogger(__name__)


# --- --stop-min-lr would end a training before its first update, because a warm-up begins at 0 ---


@remedy(Trainer, "get_lr")
def _get_lr(original: Original, self: Any) -> Any:
    """The learning rate; before the first update, it is at least above ``--stop-min-lr``."""
    rate = original(self)
    lowest = self.cfg.optimization.stop_min_lr
    if self.get_num_updates() == 0 and rate <= lowest:
        return math.nextafter(lowest, math.inf)
    return rate


# --- --max-epoch and --stop-min-lr would lose the epochs after the last of --save-interval ---


@remedy(Trainer, "lr_step")
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
        _check_remainder(cfg.optimization, epoch_itr)
        return original(cfg, trainer, task, epoch_itr)
    logger.info("%s: this training has ended before, and nothing is left to do", end)
    validates = trainer.get_num_updates() >= cfg.dataset.validate_after_updates
    if trainer.is_validated or cfg.dataset.disable_validation or not validates:
        return [None], True
    epoch_itr.next_epoch_itr()  # whose position is saved
    subsets = cfg.dataset.valid_subset.split(",")
    losses, _ = names["validate_and_save"](cfg, trainer, task, epoch_itr, subsets, False)
    return losses, True  # fairseq does not see that --patience has ended it


def _check_remainder(options: Any, batches: Any) -> None:
    """Refuse an epoch without an update, which would end in an UnboundLocalError.

    Args:
        options: fairseq's options of optimization.
        batches: the iterator of epochs; those of many languages divide an epoch otherwise.
    """
    if not options.skip_remainder_batch or type(batches) is not EpochBatchIterator:
        return
    each = options.update_freq[min(batches.next_epoch_idx, len(options.update_freq)) - 1]
    if len(batches) - 1 < each:  # the last is left out, and then those that fill no update
        raise UserError(
            f"--skip-remainder-batch leaves no update of an epoch: every process has "
            f"{len(batches)} batches, the last is left out, and an update takes {each} "
            "(--update-freq): drop it, or give smaller batches."
        )


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


# --- a training that has ended looks like a new one if it is started with other options ---

TRAINS = ("model", "task", "criterion", "optimizer", "lr_scheduler")
"""The sections of a configuration on which the result of a training depends; also the seed."""

HARMLESS = {"data", "source_lang", "target_lang", "total_num_update"}
"""Options in them that differ after a move, once they are found, or with another --max-update."""


@remedy(checkpoint_utils, "load_checkpoint")
def _begin(original: Original, cfg: Any, trainer: Any, **arguments: Any) -> Any:
    """Load a checkpoint; warn if nothing is left to train with the options that were changed."""
    found, iterator = original(cfg, trainer, **arguments)
    if found is None or trainer.data_parallel_rank != 0:
        return found, iterator
    options = trainer.cfg.optimization
    end = _end(trainer.cfg, trainer, early_stop().get("num_runs", 0))
    if iterator.next_epoch_idx > (options.max_epoch or math.inf):
        end = f"--max-epoch {options.max_epoch}"
    if trainer.get_lr() <= options.stop_min_lr:
        end = f"--stop-min-lr {options.stop_min_lr}"
    if end is not None:
        now = OmegaConf.to_container(trainer.cfg, resolve=True, enum_to_str=True)
        if changed := _changed(trainer.stored_config, now):
            logger.warning(
                "%s has ended with %s, and nothing is trained with another %s: give another "
                "--save-dir, or a later end to go on.",
                trainer.begins_with,
                end,
                ", ".join(changed),
            )
    return found, iterator


def _changed(before: Any, now: Any) -> list[str]:
    """The options of :data:`TRAINS`, and the seed, that differ between two configurations."""
    if not isinstance(before, Mapping):  # of an old checkpoint
        return []
    others = {name: section for name, section in now.items() if name not in TRAINS}
    elsewhere = HARMLESS.union(*(part for part in others.values() if isinstance(part, Mapping)))
    found: list[str] = []
    for section in ("common", *TRAINS):
        old, new = (
            vars(part) if isinstance(part, Namespace) else part
            for part in (before.get(section), now.get(section))
        )
        if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
            continue
        for name in new:
            counts = name == "seed" if section == "common" else name not in elsewhere - {"lr"}
            if counts and name in old and old[name] != new[name]:
                option = "arch" if section == "model" else section
                found.append(flag(option if name == "_name" else name))
    return list(dict.fromkeys(found))
