"""Lets a training that is told to stop finish its update, save, and say how to continue.

SIGINT (Ctrl-C) ends it with status 130, SIGTERM (Slurm, torchrun, ``kill``) with 143 and SIGHUP (a
closed terminal) with 129, with one process or several. Without this remedy, everything since the
last checkpoint is lost.
"""

import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.trainer import Trainer

from resmlp_mt.fairseq_plugin.remedies import Original, wrap
from resmlp_mt.fairseq_plugin.saving import LAST
from resmlp_mt.signals import ending_signals, forget_lost_terminal

logger = logging.getLogger(__name__)

RESETS = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")
RESETTING = re.compile(
    rf"\+{{0,2}}checkpoint\.(({'|'.join(RESETS)})=(?i:true|1|yes|on)|restore_file=(?!{LAST}$).*)"
)
"""The words of fairseq-hydra-train that a continued training must not have."""


class _Stop:
    """The signal that this process received, and what it is doing."""

    requested = 0  # number of the signal
    process = 0  # id of the process that the handlers are for; its forks inherit them
    updating = False  # a first update has begun, so there is something to save
    has_launcher = (
        False  # a launcher hands signals on: they come twice, and it decides when to kill
    )


def stop_with_a_checkpoint() -> None:
    """Have fairseq's trainer check after every update whether it should stop."""
    wrap(Trainer, "get_train_iterator", _get_train_iterator)
    wrap(Trainer, "train_step", _train_step)
    wrap(Trainer, "valid_step", _valid_step)


def handle_signals(*, has_launcher: bool) -> None:
    """Take the ending signals as requests to stop.

    Args:
        has_launcher: another process started this one and hands signals on to it.
    """
    if threading.current_thread() is threading.main_thread():
        _Stop.process, _Stop.has_launcher = os.getpid(), has_launcher
        _Stop.requested, _Stop.updating = 0, False
        for number in ending_signals():
            signal.signal(number, _request)


def _request(number: int, _: Any) -> None:
    if os.getpid() != _Stop.process:  # a data loader, which ends with the training
        _Stop.process = os.getpid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return
    forget_lost_terminal(number)
    name = signal.Signals(number).name
    if not _Stop.updating:
        try:
            print(f"{name}: the training had not begun, and nothing was changed.", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # a stream that is being written raises an error, and the code there may catch it
            os._exit(128 + number)
    if _Stop.requested and not _Stop.has_launcher:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    if not _Stop.requested:
        logger.warning("%s: the training ends after this update, with a checkpoint.", name)
    _Stop.requested = number


def _get_train_iterator(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    iterator = original(self, *args, **kwargs)
    self.stopping_iterator = iterator
    return iterator


def _train_step(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    _Stop.updating = True
    result = original(self, *args, **kwargs)
    number = _agreed(self)
    # after the last update of an epoch fairseq validates and saves, so stop after the next update
    if number and not self.stopping_iterator.end_of_epoch():
        _stop(self, number)
    return result


def _valid_step(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Stop within a validation, which can be long; several processes cannot agree within it."""
    iterator = getattr(self, "stopping_iterator", None)
    alone = self.data_parallel_world_size == 1
    if _Stop.requested and alone and iterator is not None and not iterator.end_of_epoch():
        _stop(self, _Stop.requested)
    return original(self, *args, **kwargs)


def _agreed(trainer: Any) -> int:
    """The signal that any of the processes received; 0 if none did."""
    if trainer.data_parallel_world_size == 1:
        return _Stop.requested
    number = torch.tensor([_Stop.requested], device=trainer.device)
    distributed_utils.all_reduce(number, group=trainer.data_parallel_process_group, op="max")
    return int(number.item())


def _stop(trainer: Any, number: int) -> None:
    """Save, say how to continue, and end this process.

    Raises:
        SystemExit: with the status of the signal.
    """
    config = trainer.cfg.checkpoint
    checkpoint_utils.save_checkpoint(config, trainer, trainer.stopping_iterator, None)
    if trainer.data_parallel_world_size > 1:  # the first process to end would end the others
        torch.distributed.barrier(group=trainer.data_parallel_process_group)
    if trainer.data_parallel_rank == 0:
        name, updates = signal.Signals(number).name, trainer.get_num_updates()
        last = Path(config.save_dir) / f"checkpoint_last{trainer.checkpoint_suffix}.pt"
        if config.no_save or config.no_last_checkpoints or not last.exists():
            print(f"{name}: stopped after update {updates}, nothing saved.", file=sys.stderr)
        else:
            resets = [reset for reset in RESETS if config[reset]]
            print(
                f"{name}: stopped after update {updates} and saved {last}. Continue with\n"
                f"  {going_on(command(), config.restore_file, resets)}",
                file=sys.stderr,
            )
    raise SystemExit(128 + number)


def command() -> list[str]:
    """The user's command: the command of this process, or of the torchrun that started it."""
    words = sys.orig_argv
    if "TORCHELASTIC_RUN_ID" in os.environ:
        try:
            above = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
            words = above.decode(errors="replace").rstrip("\0").split("\0")
        except OSError:
            pass  # not Linux
    if len(words) > 1 and Path(words[0]).name.startswith("python") and words[1][:1] != "-":
        words = words[1:]
        if os.access(words[0], os.X_OK):
            words = [Path(words[0]).name, *words[1:]]
    return list(words)


def going_on(words: Sequence[str], restore_file: str, resets: Sequence[str] = ()) -> str:
    """The command line that continues from ``checkpoint_last.pt`` in the training's folder.

    Args:
        words: of fairseq-train or fairseq-hydra-train.
        restore_file: fairseq's option in this training.
        resets: its options of :data:`RESETS` that are set, also by a configuration file of Hydra.
    """
    if not any(re.search(r"hydra[-_]train(\.py)?$", word) for word in words):
        kept = [word for word in words if word.removeprefix("--").replace("-", "_") not in RESETS]
        return shlex.join(kept if restore_file == LAST else [*kept, "--restore-file", LAST])
    kept = [word for word in words if not RESETTING.fullmatch(word)]
    given = " ".join(words)
    kept += [f"checkpoint.{name}=false" for name in resets if f"checkpoint.{name}=" not in given]
    return shlex.join(kept if restore_file == LAST else [*kept, f"checkpoint.restore_file={LAST}"])
