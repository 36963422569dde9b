"""Remedies for fairseq's resuming: a resumed training equals an uninterrupted one."""

import inspect
import sys
from typing import Any

from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import ReduceLROnPlateauLRSchedule
from fairseq.tasks.translation import TranslationTask
from fairseq.trainer import Trainer

from resmlp_mt.fairseq_plugin.remedies import Original, wrap

EARLY_STOP = ("best", "num_runs")
"""What ``should_stop_early`` keeps: the best score, and the validations since then."""


def go_on_exactly() -> None:
    """Form the same batches, and remember what a training decides on."""
    resume_with_the_same_batches()
    remember_validations()


# --- training that resumes inside an epoch repeats and misses sentences (fairseq issue #5387) ---


def resume_with_the_same_batches() -> None:
    """Form the batches of a resumed epoch as an uninterrupted training does.

    An uninterrupted training forms batches once, in epoch 1, and reorders them in every epoch. A
    resumed training forms other batches, with the seed of its own epoch, and then skips as many as
    were done. With ``--update-epoch-batch-itr`` (also set by ``--grouped-shuffling``) and data in
    shards, both form batches in every epoch.
    """
    source = inspect.getsource(inspect.unwrap(TranslationTask.get_batch_iterator))
    if "make_batches(dataset, epoch)" in source:
        wrap(Trainer, "get_train_iterator", _same_batches)


def _same_batches(original: Original, self: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
    forms_once = isinstance(self.task, TranslationTask) and not (
        self.cfg.dataset.update_epoch_batch_itr or kwargs.get("disable_iterator_cache")
    )
    is_first_call = kwargs.get("load_dataset", True)
    if epoch <= 1 or not (forms_once and is_first_call):
        return original(self, epoch, *args, **kwargs)
    iterator = original(self, 1, *args, **kwargs)
    iterator.epoch = epoch
    return iterator


# --- --patience, --lr-patience and --ema-update-freq count from 0 again ---


def remember_validations() -> None:
    """Save these counts in checkpoints."""
    wrap(Trainer, "save_checkpoint", _save_checkpoint)
    wrap(Trainer, "load_checkpoint", _load_checkpoint)
    wrap(ReduceLROnPlateauLRSchedule, "state_dict", _plateau)
    wrap(ReduceLROnPlateauLRSchedule, "load_state_dict", _load_plateau)


def _save_checkpoint(
    original: Original, self: Any, filename: str, extra_state: dict[str, Any]
) -> Any:
    counts = {key: value for key, value in _early_stop().items() if key in EARLY_STOP}
    extra_state = {**extra_state, "early_stop": counts}
    if self.cfg.ema.store_ema:
        extra_state["ema_updates"] = self.ema.update_freq_counter
    return original(self, filename, extra_state)


def _load_checkpoint(
    original: Original,
    self: Any,
    filename: str,
    reset_optimizer: bool = False,
    reset_lr_scheduler: bool = False,
    optimizer_overrides: Any = None,
    reset_meters: bool = False,
) -> Any:
    resets = reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters
    found = original(self, filename, *resets)
    if found is None or reset_optimizer or reset_meters:  # as for the best score of all
        return found
    _early_stop().update(found.get("early_stop", {}))
    if self.cfg.ema.store_ema:
        self.ema.update_freq_counter = found.get("ema_updates", 0)
    position = found["train_iterator"]
    on_plateau = isinstance(self.lr_scheduler, ReduceLROnPlateauLRSchedule)
    if on_plateau and not (reset_lr_scheduler or position.get("iterations_in_epoch")):
        # the checkpoint was written between the epoch's validation and this step
        self.lr_step(position["epoch"], found.get("val_loss"))
    return found


def _early_stop() -> dict[str, Any]:
    """The attributes of ``should_stop_early``, in the module that trains."""
    for name in ("__main__", "fairseq_cli.train"):
        module: Any = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        if spec is not None and spec.name == "fairseq_cli.train":
            attributes: dict[str, Any] = vars(module.should_stop_early)
            return attributes
    return {}  # another program's training


def _plateau(original: Original, self: Any) -> dict[str, Any]:
    return {**original(self), "num_bad_epochs": self.lr_scheduler.num_bad_epochs}


def _load_plateau(original: Original, self: Any, state: dict[str, Any]) -> None:
    original(self, state)
    self.lr_scheduler.num_bad_epochs = state.get("num_bad_epochs", 0)
