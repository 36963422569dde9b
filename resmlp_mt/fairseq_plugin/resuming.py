"""Remedies for fairseq's resuming: a resumed training equals an uninterrupted one."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.data.iterators import EpochBatchIterator
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import ReduceLROnPlateauLRSchedule
from fairseq.tasks.translation import TranslationTask
from fairseq.trainer import Trainer

from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import checkpoints, dictionaries
from resmlp_mt.fairseq_plugin.checkpoints import HIDDEN, SHARED
from resmlp_mt.fairseq_plugin.config import activation
from resmlp_mt.fairseq_plugin.stored_options import is_ours, name_of, registered
from resmlp_mt.fairseq_plugin.wrapping import Original, command_modules, remedy

logger = logging.getLogger(__name__)

EARLY_STOP = ("best", "num_runs")
"""What ``should_stop_early`` keeps: the best score, and the validations since then."""


# --- training that resumes inside an epoch repeats and misses sentences (fairseq issue #5387) ---


@remedy(Trainer, "get_train_iterator")
def _train_iterator(original: Original, self: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
    """Form the batches of a resumed epoch as an uninterrupted training does.

    An uninterrupted training forms batches once, in epoch 1, and reorders them in every epoch. A
    resumed training forms other batches, with the seed of its own epoch, and then skips as many as
    were done. With ``--update-epoch-batch-itr`` (also set by ``--grouped-shuffling``) and data in
    shards, both form batches in every epoch.
    """
    forms_once = isinstance(self.task, TranslationTask) and not (
        self.cfg.dataset.update_epoch_batch_itr or kwargs.get("disable_iterator_cache")
    )
    is_first_call = kwargs.get("load_dataset", True)
    once = epoch > 1 and forms_once and is_first_call
    iterator = original(self, 1 if once else epoch, *args, **kwargs)
    if once:
        iterator.epoch = epoch
    iterator.update_freq = self.cfg.optimization.update_freq  # for _load_position
    self.stopping_iterator = iterator  # for ``training_end``
    return iterator


# --- a position inside an epoch counts the batches of one process ---


@remedy(EpochBatchIterator, "state_dict")
def _position(original: Original, self: Any) -> dict[str, Any]:
    batches = {"batches": len(self.frozen_batches), "seed": self.seed}
    return {**original(self), "num_shards": self.num_shards, **batches}


@remedy(EpochBatchIterator, "load_state_dict")
def _load_position(original: Original, self: Any, state: dict[str, Any]) -> None:
    """Go on after the batches that all processes have taken, or earlier, where an update begins.

    Batch i of an epoch is taken by process i modulo their number. An update that began elsewhere
    would end after the epoch, and fairseq would repeat all of it.

    Another ``--max-tokens``, ``--batch-size`` or ``--seed`` makes other batches: the same share of
    them is left out.

    Raises:
        UserError: if there is no such position for this number of processes.
    """
    taken, before = state.get("iterations_in_epoch", 0), state.get("num_shards", self.num_shards)
    simple = type(self) is EpochBatchIterator
    if taken and before != self.num_shards and (self.grouped_shuffling or not simple):
        raise UserError(
            f"--distributed-world-size: the training stopped inside an epoch with {before} "
            f"processes, and {self.num_shards} cannot go on there: continue with {before}, or "
            "give --reset-dataloader, which starts again at epoch 1."
        )
    if simple:
        freqs = getattr(self, "update_freq", [1])
        freq = freqs[min(state["epoch"], len(freqs)) - 1]
        total = len(self.frozen_batches)
        then = state.get("batches", total), state.get("seed", self.seed)
        seen = taken * before * total // (then[0] or 1)
        each = min(seen // self.num_shards, len(self) - 1) // freq * freq
        twice = seen - each * self.num_shards
        if taken and then != (total, self.seed):
            logger.warning(
                "this epoch goes on with other batches than those before (another --max-tokens, "
                "--batch-size or --seed?), after %d of %d: some of its sentences come twice, and "
                "others not at all",
                each * self.num_shards,
                total,
            )
        elif twice or before != self.num_shards:
            told = (
                f"{twice} batches of this epoch come twice: {before} processes had taken {taken} "
                f"each, and {self.num_shards} go on after {each} each"
            )
            logger.log(logging.WARNING if twice else logging.INFO, told)
        state = {**state, "iterations_in_epoch": each}
    original(self, state)


# --- --curriculum N never shuffles: the batches of the first epoch's order are used again ---


@remedy(EpochBatchIterator, "_get_iterator_for_epoch")
def _get_iterator_for_epoch(
    original: Original,
    self: Any,
    epoch: int,
    shuffle: bool,
    fix_batches_to_gpus: bool = False,
    offset: int = 0,
) -> Any:
    if self.dataloader is not None:  # which is kept, with the order of its first epoch
        self.epoch_batch_sampler.shuffle = shuffle
        self.epoch_batch_sampler.fix_batches_to_gpus = fix_batches_to_gpus
    return original(self, epoch, shuffle, fix_batches_to_gpus, offset)


# --- --patience, --lr-patience and --ema-update-freq count from 0 again: save their counts ---


@remedy(Trainer, "save_checkpoint")
def _save_checkpoint(
    original: Original, self: Any, filename: str, extra_state: dict[str, Any]
) -> Any:
    counts = {key: value for key, value in early_stop().items() if key in EARLY_STOP}
    extra_state = {**extra_state, "early_stop": counts}
    if hasattr(self, "stopping_score"):  # it stops after an epoch that fairseq does not save
        extra_state["val_loss"] = self.stopping_score
    if self.cfg.ema.store_ema:
        extra_state["ema_updates"] = self.ema.update_freq_counter
    return original(self, filename, extra_state)


@remedy(Trainer, "load_checkpoint")
def _load_checkpoint(
    original: Original,
    self: Any,
    filename: str,
    reset_optimizer: bool = False,
    reset_lr_scheduler: bool = False,
    optimizer_overrides: Any = None,
    reset_meters: bool = False,
) -> Any:
    """Go on with all that is in a checkpoint, or begin with its weights; it is looked at once.

    Raises:
        UserError: if it is of other words, languages or another model.
    """
    path, state = Path(filename), dict[str, Any]()
    if path.is_file():
        state = checkpoints.read(path, only_look=True)
        dictionaries.check_training(self.task, state, path, is_new=reset_optimizer)
        check_model(self.cfg.model, state, path)
    resets = reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters
    with _averages_of_loaded_weights(self, state, path):
        found = original(self, filename, *resets)
    self.begins_with, self.stored_config = path, state.get("cfg")  # for ``training_end``
    self.is_validated = found is not None and found.get("val_loss") is not None
    if reset_optimizer:  # a new training, which has the weights of the file but not its time
        self._previous_training_time = 0
    if found is not None and not reset_optimizer:
        _count_on(self, filename, reset_lr_scheduler)
    if found is None or reset_optimizer or reset_meters:  # as for the best score of all
        return found
    early_stop().update(found.get("early_stop", {}))
    if reset_lr_scheduler or self.cfg.checkpoint.reset_dataloader:
        early_stop()["num_runs"] = 0  # it may have ended the training of the file
    if self.cfg.ema.store_ema:
        self.ema.update_freq_counter = found.get("ema_updates", 0)
    position = found["train_iterator"]
    on_plateau = isinstance(self.lr_scheduler, ReduceLROnPlateauLRSchedule)
    if on_plateau and not (reset_lr_scheduler or position.get("iterations_in_epoch")):
        # the checkpoint was written between the epoch's validation and this step
        self.lr_step(position["epoch"], found.get("val_loss"))
    return found


def check_model(options: Any, state: Mapping[str, Any], path: Path) -> None:
    """Refuse weights that fit and would make another model, as with another number of heads.

    Args:
        options: of the model that gets the weights.
        state: of the checkpoint.

    Raises:
        UserError: naming the option and its value in the checkpoint.
    """
    stored = checkpoints.options_of(state, "model")
    kinds = [registered("model", name_of("model", each)) for each in (stored, options)]
    if not all(map(is_ours, kinds)):
        return
    # its options count where a checkpoint leaves them out
    preset = getattr(kinds[0], "__dataclass", None)

    def values(name: str) -> list[Any]:
        """Of the checkpoint, and of the model now."""
        found = stored.get(name, getattr(preset, name)), getattr(options, name)
        return [activation(value) if name == "activation_fn" else value for value in found]

    for name in HIDDEN:
        before, now = values(name)
        if before != now:
            raise UserError(
                f"{flag(name)} is {now}, but {path} was trained with {before}: give {before}."
            )
    of_all, _ = values(SHARED[0])
    for name in SHARED:
        before, now = values(name)
        if now and not (before or of_all):
            raise UserError(f"{flag(name)}: {path} was trained without it: drop it.")


@contextlib.contextmanager
def _averages_of_loaded_weights(
    trainer: Any, state: Mapping[str, Any], path: Path
) -> Iterator[None]:
    """Begin the averages of ``--store-ema`` with the weights of a checkpoint that has none.

    fairseq looks for these weights where it has removed them.
    """
    options = trainer.cfg.ema
    if not (options.store_ema and state) or "ema" in (state.get("extra_state") or {}):
        yield
        return
    options.store_ema = False
    try:
        yield
    finally:
        options.store_ema = True
    logger.warning("%s has no averages of --store-ema: they begin with its weights.", path)
    trainer._build_ema()


def _count_on(trainer: Any, filename: str, reset_lr_scheduler: bool) -> None:
    """Continue the numbers of updates of a checkpoint without the state of its optimizer.

    fairseq takes them from it together with that state (``--no-save-optimizer-state``).
    """
    last = trainer._optim_history[-1]
    if trainer.get_num_updates() == last["num_updates"]:
        return
    if not reset_lr_scheduler:
        trainer.lr_scheduler.load_state_dict(last["lr_scheduler_state"])
    trainer.set_num_updates(last["num_updates"])
    logger.warning(
        "%s has no state of the optimizer, which begins again; the training continues at update "
        "%d.",
        filename,
        last["num_updates"],
    )


def early_stop() -> dict[str, Any]:
    """The attributes of ``should_stop_early``, in the module that trains."""
    for module in command_modules("train"):
        attributes: dict[str, Any] = vars(module.should_stop_early)
        return attributes
    return {}  # another program's training


def forget_scores() -> None:
    """Forget the scores of an earlier training of this process.

    ``fairseq-hydra-train -m`` has one training after the other. fairseq would compare the second
    with the best score of the first, and count its validations.
    """
    for kept in (vars(checkpoint_utils.save_checkpoint), early_stop()):
        for name in EARLY_STOP:
            kept.pop(name, None)


@remedy(ReduceLROnPlateauLRSchedule, "state_dict")
def _plateau(original: Original, self: Any) -> dict[str, Any]:
    return {**original(self), "num_bad_epochs": self.lr_scheduler.num_bad_epochs}


@remedy(ReduceLROnPlateauLRSchedule, "load_state_dict")
def _load_plateau(original: Original, self: Any, state: dict[str, Any]) -> None:
    original(self, state)
    self.lr_scheduler.num_bad_epochs = state.get("num_bad_epochs", 0)
