"""Lets several processes train as one job: under torchrun, or started by fairseq, on CPUs too.

For ``--distributed-world-size N``, fairseq starts min(number of GPUs, N) processes, which is none
on a CPU. The process that starts them would be the only one to receive a signal, and end before
they save. Without that option fairseq ignores torchrun, and every process trains alone on all data.

The remedies reach commands that import the plugin before they start processes;
``fairseq-hydra-train`` does so through the callback in ``configs/mt``.
"""

import importlib
import inspect
import logging
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any, NoReturn

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from omegaconf import open_dict
from torch import distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import console, continue_command, stop_signals
from resmlp_mt.fairseq_plugin.encoder import ResMLPEncoder
from resmlp_mt.fairseq_plugin.wrapping import Original, is_command, mend, remedy
from resmlp_mt.signals import (
    ENDING,
    end_with_parent,
    forget_lost_terminal,
    handle,
    held,
    release,
    restore,
    tell,
)

logger = logging.getLogger(__name__)

OF_TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
ON_CPU = {"distributed_backend": ("gloo",), "ddp_backend": ("legacy_ddp", "no_c10d")}

_peers: list[tuple[str, int]] = []
"""Host name and process id of every rank."""


@remedy(distributed_utils, "call_main")
def _call_main(original: Original, cfg: Any, main: Any, **kwargs: Any) -> None:
    options = cfg.distributed_training
    if not trains(main):
        original(cfg, main, **kwargs)
        return
    stop_signals.stop_after_an_update(main)
    if os.environ.keys() >= OF_TORCHRUN and options.distributed_init_method is None:
        _join_torchrun(cfg)
        with _named_ends(cfg):
            original(cfg, main, **kwargs)
    elif cfg.common.cpu and options.distributed_world_size > 1 and not options.distributed_no_spawn:
        _check_backends(options)
        if options.distributed_init_method is None:
            options.distributed_init_method = f"tcp://localhost:{random.randint(10000, 60000)}"
        _start_processes(cfg, main, kwargs, options.distributed_world_size, start_rank=0)
    else:
        if options.distributed_init_method is None:
            distributed_utils.infer_init_method(options)
        if options.distributed_init_method is None or options.distributed_no_spawn:
            before = stop_signals.handle_signals(has_launcher=False)
            try:
                original(cfg, main, **kwargs)
            finally:
                restore(before)
        else:  # fairseq would start a process for every GPU
            processes = min(torch.cuda.device_count(), options.distributed_world_size)
            _start_processes(cfg, main, kwargs, processes, start_rank=options.distributed_rank)


def trains(main: Any) -> bool:
    """Whether this is the function of fairseq-train, imported or run with ``python -m``."""
    spec = getattr(inspect.getmodule(main), "__spec__", None)
    return main.__module__ == "fairseq_cli.train" or is_command(spec, "train")


def _join_torchrun(cfg: Any) -> None:
    """Take over torchrun's settings; on CPUs, also set the only backends that work there."""
    options = cfg.distributed_training
    world_size = int(os.environ["WORLD_SIZE"])
    stop_signals.handle_signals(has_launcher=True)
    with open_dict(options):
        options.distributed_world_size = world_size
        if world_size == 1:
            return
        options.distributed_init_method = "env://"
        options.distributed_rank = int(os.environ["RANK"])
        options.device_id = int(os.environ["LOCAL_RANK"])
        options.distributed_no_spawn = True
        if cfg.common.cpu or not torch.cuda.is_available():
            for option, working in ON_CPU.items():
                if options[option] not in working:
                    options[option] = working[0]


def _check_backends(options: Any) -> None:
    for option, working in ON_CPU.items():
        if options[option] not in working:
            raise UserError(
                f"--cpu with --distributed-world-size {options.distributed_world_size} needs "
                f"{flag(option)} {working[0]}, but it is {options[option]}; for one process, "
                "--distributed-world-size 1."
            )


def _start_processes(
    cfg: Any, main: Any, kwargs: dict[str, Any], processes: int, start_rank: int
) -> None:
    """Start processes, hand signals on to them, and end as they do.

    Args:
        processes: how many run on this machine; the first has the rank ``start_rank``.

    Raises:
        UserError: if a process was killed, or there is nothing to start one for.
        SystemExit: with the status of a process that failed or stopped on purpose.
    """
    if processes == 0:
        raise UserError(
            "several processes were asked for (by --distributed-init-method or Slurm), but there "
            "is no GPU: give --cpu and --distributed-world-size above 1, or, for one process, "
            "neither --distributed-init-method nor --distributed-port."
        )
    cfg.distributed_training.distributed_rank = None  # each process sets it from its index
    loaded = [name for name in sys.modules if name.startswith("resmlp_mt.")]
    times: list[float] = []
    resource_tracker.ensure_running()  # starting it later would let signals through
    given = main, cfg, {**kwargs, "start_rank": start_rank}, loaded, continue_command.command()
    with held():  # until they are handed on here, and until a process has loaded its modules
        context = spawn(fn=_worker, args=given, nprocs=processes, join=False)
        before = handle(lambda number, _: _hand_on(context, number, times))
    try:
        codes = _first_ends(context.processes)
        while not context.join():  # torch ends the others, by force after a while
            pass
    except ProcessExitedException:
        _end_like(codes, start_rank, cfg.checkpoint)
    finally:
        restore(before)


def _worker(
    index: int,
    main: Any,
    cfg: Any,
    kwargs: dict[str, Any],
    modules: Sequence[str],
    command: list[str],
) -> None:
    """One of the processes that :func:`_start_processes` starts; it prints its own errors.

    torch would show those of one process alone, which may be the wrong one.
    """
    stop_signals.handle_signals(has_launcher=True)
    release()
    rank = kwargs["start_rank"] + index  # fairseq takes it out
    sys.orig_argv = command  # otherwise it names multiprocessing's start module
    for name in modules:  # --user-dir skips this plugin, because it is imported already
        importlib.import_module(name)
    mend(sys.modules[__name__])
    end_with_parent()  # torch's signal of its death would be taken for a request to stop
    stop_signals.stop_after_an_update(main)
    try:
        distributed_utils.distributed_main(index, main, cfg, kwargs)
    except Exception as error:
        sentence = console.mistake(error)
        if sentence is not None:
            tell(f"rank {rank}: {sentence}")
        elif not (isinstance(error, RuntimeError) and _gone()):
            tell(f"rank {rank}:\n{traceback.format_exc()}")  # not among the lines of another
        sys.exit(1)  # where one was killed, the process above names it


def _hand_on(context: Any, number: int, times: list[float]) -> None:
    """Hand a signal on to the processes; a second one kills them, which may hang.

    Args:
        times: of the signals until now, in seconds; this one's is added.
    """
    forget_lost_terminal(number)
    times.append(time.monotonic())
    again = times[-1] - times[0] > stop_signals.AT_ONCE
    for process in context.processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL if again else number)
    if again:
        tell(f"{signal.Signals(number).name} for the second time: the processes were killed.")
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _first_ends(processes: Sequence[Any]) -> list[int | None]:
    """Wait until a process fails, or all have ended.

    Returns:
        The exit codes before others are ended; None for a process that runs.
    """
    while True:
        codes = [process.exitcode for process in processes]
        if any(codes) or None not in codes:
            return codes
        pairs = zip(processes, codes, strict=True)
        connection.wait([process.sentinel for process, code in pairs if code is None])


def _end_like(codes: Sequence[int | None], start_rank: int, checkpoint: Any) -> NoReturn:
    """End as the processes did that ended by themselves.

    Args:
        codes: of :func:`_first_ends`.
        start_rank: the rank of the first process.
        checkpoint: fairseq's options of checkpoints.

    Raises:
        UserError: naming the rank that was killed.
        SystemExit: with the status of a process that stopped on purpose or printed its error.
    """
    failed = {rank: code for rank, code in enumerate(codes, start_rank) if code}
    for rank, code in failed.items():
        if code < 0 and -code not in ENDING:
            raise UserError(
                f"the training ended because its process of rank {rank} was killed by "
                f"{signal.Signals(-code).name} (too little memory?): "
                f"{continue_command.advice(checkpoint)}."
            ) from None
    code = next(iter(failed.values()))
    raise SystemExit(code if code >= 0 else 128 - code) from None


@contextmanager
def _named_ends(cfg: Any) -> Iterator[None]:
    """Replace the traceback of a lost connection by an error that names the lost rank.

    Raises:
        UserError: if another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        gone = _gone()
        lost = any(word in str(error) for word in ("by peer", "Broken pipe", "Connection"))
        if not gone and not lost:
            raise
        who = f"rank {' and '.join(map(str, gone))}" if gone else "a rank on another machine"
        raise UserError(
            f"the training ended because its process of {who} has ended (killed, or with an "
            f"error of its own above): {continue_command.advice(cfg.checkpoint)}."
        ) from error


def _gone(patience: float = 3.0) -> list[int]:
    """The ranks on this machine whose processes have ended, after waiting for it a while."""
    end = time.monotonic() + patience
    while _peers:
        here = socket.gethostname()
        gone = [rank for rank, (host, pid) in enumerate(_peers) if host == here and _ended(pid)]
        if gone or time.monotonic() > end:
            return gone
        time.sleep(0.05)
    return []


def _ended(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    if stat.parent.parent.joinpath("self").exists():
        try:  # the state follows the name in brackets; Z: ended, but not yet reaped
            return stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


@remedy(distributed_utils, "distributed_init")
def _distributed_init(original: Original, cfg: Any) -> Any:
    rank = original(cfg)
    if dist.is_initialized() and dist.get_world_size() > 1:
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (socket.gethostname(), os.getpid()))
        _peers[:] = found
    return rank


def check_joined() -> None:
    """Refuse to train alone under torchrun if the plugin was loaded too late to join.

    Raises:
        UserError: saying how to load it earlier.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1)) if os.environ.keys() >= OF_TORCHRUN else 1
    if processes > 1 and not dist.is_initialized():
        raise UserError(
            f"torchrun has started {processes} processes, but this one would train alone: the "
            "plugin was loaded after fairseq looked for them; name resmlp_mt.models.HydraCallback "
            "under hydra.callbacks, as the configurations in configs/mt do."
        )


@remedy(checkpoint_utils, "save_checkpoint")
def _save_checkpoint(original: Original, cfg: Any, trainer: Any, *args: Any) -> Any:
    """All processes come here before one of them saves: agree on the longest trained sentence.

    Not in ``Trainer.consolidate_optimizer``, which a process that fails calls alone.
    """
    if dist.is_initialized():
        encoder = getattr(trainer.get_model(), "encoder", None)
        if isinstance(encoder, ResMLPEncoder):
            group = trainer.data_parallel_process_group
            distributed_utils.all_reduce(encoder.longest_trained, group=group, op="max")
    return original(cfg, trainer, *args)


@remedy(distributed_utils, "_broadcast_object_slow")
def _broadcast_object(
    _: Original, obj: Any, src_rank: int, group: Any, dist_device: torch.device
) -> Any:
    """Send it without fairseq's safe loader, which refuses what a resumed training sends."""
    holder = [obj]
    dist.broadcast_object_list(holder, src=src_rank, group=group, device=dist_device)
    return holder[0]
