"""Lets a training that is told to stop finish its update, save, and say how to continue.

SIGINT (Ctrl-C) ends it with status 130, SIGTERM (Slurm, torchrun, ``kill``) with 143 and SIGHUP (a
closed terminal) with 129, with one process or several. Without this remedy, everything since the
last checkpoint is lost.

The validation of the update is part of it: without its score, the best checkpoint, ``--patience``
and the learning rate would differ from those of a training that was not stopped.
"""

import functools
import inspect
import logging
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils
from fairseq.trainer import Trainer

from resmlp_mt.fairseq_plugin import training_end
from resmlp_mt.fairseq_plugin.continue_command import RESETS, command, going_on
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy
from resmlp_mt.signals import Handlers, forget_lost_terminal, handle, tell

logger = logging.getLogger(__name__)


AT_ONCE = 1.0
"""Seconds in which further signals count as the first: some senders reach a process twice.

``timeout`` does so, and a launcher that hands a terminal's Ctrl-C on.
"""


class _Stop:
    """The signal that this process received, and what it is doing."""

    requested = 0  # number of the signal
    since = 0.0  # when it came, in seconds
    process = 0  # id of the process that the handlers are for; its forks inherit them
    updating = False  # a first update has begun, so there is something to save
    has_launcher = (
        False  # a launcher hands signals on: they come twice, and it decides when to kill
    )


def stop_after_an_update(main: Any) -> None:
    """Have a training check after every update, and its validation, whether it should stop.

    It also looks before every epoch whether it has ended before.

    Args:
        main: ``main`` of fairseq-train. Its module may be a copy that has no name.
    """
    names = inspect.unwrap(main).__globals__
    for name, mended in (("validate_and_save", _validate_and_save), ("train", training_end.train)):
        if getattr(names[name], "func", None) is not mended:
            names[name] = functools.partial(mended, names[name])


def handle_signals(*, has_launcher: bool) -> Handlers:
    """Take the ending signals as requests to stop.

    Args:
        has_launcher: another process started this one and hands signals on to it.

    Returns:
        The earlier handlers, for a program that does more than train.
    """
    _Stop.process, _Stop.has_launcher = os.getpid(), has_launcher
    _Stop.requested, _Stop.updating = 0, False
    return handle(_request)


def _request(number: int, _: Any) -> None:
    if os.getpid() != _Stop.process:  # a data loader, which ends with the training
        _Stop.process = os.getpid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return
    forget_lost_terminal(number)
    name = signal.Signals(number).name
    if not _Stop.updating:
        tell(f"{name}: the training had not begun, and nothing was changed.")
        try:
            sys.stdout.flush()
        finally:  # a stream that is being written raises an error, and the code there may catch it
            os._exit(128 + number)
    again = _Stop.requested and time.monotonic() - _Stop.since > AT_ONCE
    if again and not _Stop.has_launcher:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    if not _Stop.requested:
        _Stop.since = time.monotonic()
        logger.warning(
            "%s: the training ends after this update, and its validation if one is due, with a "
            "checkpoint.",
            name,
        )
    _Stop.requested = number


@remedy(Trainer, "train_step")
def _train_step(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    _Stop.updating = True
    return original(self, *args, **kwargs)


def _validate_and_save(
    original: Original, cfg: Any, trainer: Any, task: Any, epoch_itr: Any, *args: Any
) -> Any:
    trainer.stopping_saves = []
    losses, is_last = original(cfg, trainer, task, epoch_itr, *args)
    number = _agreed(trainer)
    at_end = epoch_itr.end_of_epoch()
    last_epoch = cfg.optimization.max_epoch or math.inf
    # after its last epoch a training ends by itself, and ``training_end`` saves it
    if number and not is_last and not (at_end and epoch_itr.next_epoch_idx > last_epoch):
        if losses[0] not in trainer.stopping_saves:
            if at_end:  # for the scheduler of the learning rate
                trainer.stopping_score = losses[0]
            training_end.save(trainer, None)
        _stop(trainer, number)
    return losses, is_last


@remedy(Trainer, "begin_valid_epoch")
def _begin_valid_epoch(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Save before a validation: it can be long, and the training may be killed meanwhile."""
    if _agreed(self):
        training_end.save(self, None)
    return original(self, *args, **kwargs)


@remedy(Trainer, "valid_step")
def _valid_step(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Save within a validation too; several processes cannot agree within it."""
    if _Stop.requested and self.data_parallel_world_size == 1 and not self.stopping_saves:
        training_end.save(self, None)
    return original(self, *args, **kwargs)


def _agreed(trainer: Any) -> int:
    """The signal that any of the processes received; 0 if none did."""
    if trainer.data_parallel_world_size == 1:
        return _Stop.requested
    number = torch.tensor([_Stop.requested], device=trainer.device)
    distributed_utils.all_reduce(number, group=trainer.data_parallel_process_group, op="max")
    return int(number.item())


def _stop(trainer: Any, number: int) -> None:
    """Say how to continue, and end this process.

    Raises:
        SystemExit: with the status of the signal.
    """
    config = trainer.cfg.checkpoint
    if trainer.data_parallel_world_size > 1:  # the first process to end would end the others
        torch.distributed.barrier(group=trainer.data_parallel_process_group)
    if trainer.data_parallel_rank == 0:
        name, updates = signal.Signals(number).name, trainer.get_num_updates()
        last = Path(config.save_dir) / f"checkpoint_last{trainer.checkpoint_suffix}.pt"
        if config.no_save or config.no_last_checkpoints or not last.exists():
            print(f"{name}: stopped after update {updates}, nothing saved.", file=sys.stderr)
        else:
            resets = [reset for reset in RESETS if config[reset]]
            without = ""
            if config.no_save_optimizer_state:
                without = ", but not the state of the optimizer (--no-save-optimizer-state)"
            print(
                f"{name}: stopped after update {updates} and saved {last}{without}. Continue with\n"
                f"  {going_on(command(), config.restore_file, resets)}",
                file=sys.stderr,
            )
    raise SystemExit(128 + number)
