"""Remedies for fairseq's training: batch buckets, R-Drop, averages, and the best checkpoints."""

import inspect
import logging
import os
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from fairseq import checkpoint_utils
from fairseq.criterions.label_smoothed_cross_entropy_with_rdrop import (
    RdropLabelSmoothedCrossEntropyCriterion,
)
from fairseq.data import LanguagePairDataset, bucket_pad_length_dataset, data_utils
from fairseq.logging import progress_bar
from fairseq.models.ema import EMA
from fairseq.tasks.translation import TranslationTask
from fairseq.trainer import Trainer
from torch import Tensor

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import checkpoints, resuming
from resmlp_mt.fairseq_plugin.saving import updates
from resmlp_mt.fairseq_plugin.stored_options import is_known
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy

# --- --num-batch-buckets uses an argument and a type that numpy 2 no longer has ---


@remedy((data_utils, bucket_pad_length_dataset), "get_buckets")
def _get_buckets(_: Original, sizes: Any, num_buckets: int) -> Any:
    shares = np.linspace(0, 100, num_buckets + 1)
    return np.unique(np.percentile(sizes, shares, method="lower")[1:])


@remedy(LanguagePairDataset, "__init__")
def _language_pair_dataset(original: Original, self: Any, *args: Any, **kwargs: Any) -> None:
    with mock.patch.object(np, "compat", SimpleNamespace(long=int), create=True):
        original(self, *args, **kwargs)


# --- R-Drop doubles the inputs of a batch in place, and --eval-bleu then lacks references ---


@remedy(RdropLabelSmoothedCrossEntropyCriterion, "forward")
def _rdrop_forward(
    original: Original, self: Any, model: Any, sample: Any, *args: Any, **kwargs: Any
) -> Any:
    own = {**sample, "net_input": dict(sample["net_input"])}
    return original(self, model, own, *args, **kwargs)


# --- --log-file is opened again at every epoch, and then holds every line several times ---


@remedy(progress_bar, "progress_bar")
def _progress_bar(original: Original, *args: Any, **kwargs: Any) -> Any:
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    if given.get("log_file") is not None:
        close_log_files(progress_bar.__name__)
    return original(*args, **kwargs)


def close_log_files(*loggers: str) -> None:
    """Close the files that fairseq has added to loggers, by their names."""
    for logger in map(logging.getLogger, loggers):
        for handler in [each for each in logger.handlers if isinstance(each, logging.FileHandler)]:
            logger.removeHandler(handler)
            handler.close()


# --- --keep-best-checkpoints N keeps fewer ---


@remedy(checkpoint_utils, "save_checkpoint")
def _save_checkpoint(
    original: Original, cfg: Any, trainer: Any, epoch_itr: Any, val_loss: Any
) -> Any:
    """Keep N checkpoints as soon as there are N.

    fairseq saves no checkpoint that is worse than the kept ones, however few they are. It gives two
    checkpoints with one score the same name in one of N cases. It does not see negative scores, and
    keeps all checkpoints with them.
    """
    if cfg.keep_best_checkpoints <= 0 or val_loss is None or cfg.no_save:
        return original(cfg, trainer, epoch_itr, val_loss)
    if trainer.should_save_checkpoint_on_current_rank:
        _make_room(cfg, trainer, epoch_itr, val_loss)
    with _room_for_another(cfg, trainer.checkpoint_suffix):
        return original(cfg, trainer, epoch_itr, val_loss)


def _make_room(cfg: Any, trainer: Any, epoch_itr: Any, val_loss: float) -> None:
    """Rename the checkpoint with the same score whose name fairseq is about to use."""
    with data_utils.numpy_seed(epoch_itr.epoch, trainer.get_num_updates(), val_loss):
        drawn = np.random.randint(0, cfg.keep_best_checkpoints)

    def path(digit: int) -> Path:
        score = f"{cfg.best_checkpoint_metric}_{val_loss:.3f}{digit}"
        return Path(cfg.save_dir, f"checkpoint.best_{score}{trainer.checkpoint_suffix}.pt")

    # a file of this very model is of a training that was killed as it saved: fairseq replaces it
    if path(drawn).exists() and updates(path(drawn)) != trainer.get_num_updates():
        free = [d for d in range(cfg.keep_best_checkpoints) if not path(d).exists()]
        if free:
            os.replace(path(drawn), path(free[0]))


def _room_for_another(cfg: Any, suffix: str) -> AbstractContextManager[Any]:
    """Let fairseq find a checkpoint with the worst score if there are fewer than N."""
    paths = checkpoint_utils.checkpoint_paths
    best = rf"checkpoint\.best_{cfg.best_checkpoint_metric}_("
    infinity = "-inf" if cfg.maximize_best_checkpoint_metric else "inf"
    worst = f"checkpoint.best_{infinity}{suffix}.pt"

    def found(folder: str, pattern: str = r"checkpoint(\d+)\.pt", **kwargs: Any) -> Any:
        if not pattern.startswith(best):
            return paths(folder, pattern=pattern, **kwargs)
        pattern = best + "-?" + pattern.removeprefix(best)
        there = paths(folder, pattern=pattern, **kwargs)
        if len(there) >= cfg.keep_best_checkpoints:
            return there
        return [*there, worst] if cfg.maximize_best_checkpoint_metric else [worst, *there]

    return mock.patch.object(checkpoint_utils, "checkpoint_paths", found)


# --- --store-ema multiplies whole numbers by the decay, which fails, and shared embeddings by it
# once for each of their names ---


@remedy(EMA, "__init__")
def _ema(original: Original, self: Any, model: Any, config: Any, *args: Any, **kwargs: Any) -> None:
    """Average every tensor once, and take whole numbers, such as lengths, as they are."""
    seed = config.ema_seed_model
    if seed is not None:
        state = checkpoints.read(Path(seed), only_look=True)
        if "ema" not in (state.get("extra_state") or {}):
            raise UserError(
                f"--ema-seed-model {seed} has no averages: give a checkpoint of a training with "
                "--store-ema."
            )
        if hasattr(model, "cfg"):
            resuming.check_model(model.cfg, state, Path(seed))
    original(self, model, config, *args, **kwargs)
    whole = (name for name, value in model.state_dict().items() if not value.is_floating_point())
    self.skip_keys = {*self.skip_keys, *whole}
    averages = self.fp32_params if self.config.ema_fp32 else self.model.state_dict()
    first: dict[int, str] = {}  # the name that counts, by the memory of its average
    self.repeated = {
        name
        for name, value in averages.items()
        if isinstance(value, Tensor) and first.setdefault(value.data_ptr(), name) != name
    }


@remedy(EMA, "_step_internal")
def _ema_step(original: Original, self: Any, new_model: Any, updates: Any = None) -> None:
    state = {n: value for n, value in new_model.state_dict().items() if n not in self.repeated}
    original(self, SimpleNamespace(state_dict=lambda: state), updates)


# --- a --best-checkpoint-metric that is not computed ends in a KeyError after the first epoch; of
# several processes with --update-freq, one that lacks the last batch of an epoch would lose the
# others of its update ---

ONLY_IN_VALIDATION = {"bleu", "ppl"}
"""Metrics that fairseq does not compute in training, or leaves out of what a step returns."""


@remedy(Trainer, "train_step")
def _train_step(original: Original, self: Any, samples: Any, *args: Any, **kwargs: Any) -> Any:
    """Leave out the empty batch that makes epochs equally long, if its process has another.

    fairseq takes an update that ends with it for an empty one: its tokens are not counted.
    Gradients are exchanged once for an update, but weights of ``--ddp-backend fully_sharded`` and
    experts with every batch.
    """
    exchanges_once = not (self.is_fsdp or getattr(self.cfg.model, "base_layers", 0))
    if exchanges_once and not all(samples):
        samples = list(filter(None, samples)) or samples[:1]
    found = original(self, samples, *args, **kwargs)
    metric = self.cfg.checkpoint.best_checkpoint_metric
    # a user's criterion may have metrics of validation alone
    known = type(self.task) is TranslationTask and is_known(type(self.get_criterion()))
    if known and found is not None and metric not in {*found, *ONLY_IN_VALIDATION}:
        names = ", ".join(sorted({*found, "ppl"} - {"sample_size"}))
        raise UserError(
            f"--best-checkpoint-metric {metric} is not computed in this training: it has {names}."
        )
    return found


# --- a validation on the training set (--train-subset valid) moves the training to its next epoch:
# the two share an iterator, and --max-epoch 1 ends with status 0 and without a training ---


@remedy(Trainer, "get_valid_iterator")
def _get_valid_iterator(
    original: Original, self: Any, subset: str, disable_iterator_cache: bool = False
) -> Any:
    trains_on_it = subset == self.cfg.dataset.train_subset
    return original(self, subset, disable_iterator_cache or trains_on_it)
