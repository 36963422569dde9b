"""fairseq's installed commands, in processes that have fairseq loaded from their start.

A command spends most of its time on the import of fairseq. So one process imports it, and is forked
for each command, before it has done anything else. The forks run the installed program itself.
"""

import atexit
import logging
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch

ROOT = Path(__file__).resolve().parent.parent
FORKS = multiprocessing.get_context("forkserver")
# What the commands import, but not they themselves: they set up logging when they are imported.
LOADED = ("fairseq.trainer", "fairseq.tasks.translation", "fairseq.sequence_generator",
          "fairseq.checkpoint_utils", "fairseq.distributed.utils", "torch._dynamo",
          "sentencepiece", "safetensors.torch")  # fmt: skip
FORKS.set_forkserver_preload(["forks", *LOADED])


class Fork:
    """An installed command of fairseq in another process, which starts at once.

    Args:
        command: without ``fairseq-``.
        arguments: its command line.
        log: receives what it prints, on both streams.
        environment: variables, besides those of this process; None removes one.
        folder: where it runs.
        typed: a file that is its standard input; none ends it at once.
    """

    def __init__(
        self,
        command: str,
        arguments: Sequence[object],
        log: Path,
        environment: Mapping[str, str | None] | None = None,
        folder: Path = ROOT,
        typed: Path | None = None,
    ) -> None:
        self.log = log
        log.touch()
        words = [str(Path(sys.executable).parent / f"fairseq-{command}"), *map(str, arguments)]
        variables = {**os.environ, **(environment or {})}
        given = (words, log, variables, folder, typed)
        self.process = FORKS.Process(target=run, args=given, daemon=True)  # ends with the tests
        self.process.start()

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 300) -> tuple[int, str]:
        """The exit status, negative for a signal, and what was printed."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still runs after {seconds} s:\n{self.log.read_text()}")
        return self.process.exitcode, self.log.read_text()

    def wait_for(self, text: str) -> None:
        """Until something is printed."""
        end = time.monotonic() + 300
        while text not in self.log.read_text():
            assert self.process.is_alive(), self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)


def run(
    words: list[str],
    log: Path,
    variables: Mapping[str, str | None],
    folder: Path,
    typed: Path | None,
) -> NoReturn:
    """Become the program, in the process that was forked for it."""
    multiprocessing.current_process().daemon = False  # the command may have processes of its own,
    multiprocessing.set_start_method(None, force=True)  # and starts them as any program does
    for number, path, flags in (
        (0, typed or os.devnull, os.O_RDONLY),
        (1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        descriptor = os.open(path, flags)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.dup2(1, 2)
    sys.stdin = open(0, encoding="utf-8", errors=sys.stdout.errors, closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    os.chdir(folder)
    here = str(Path(__file__).parent)
    asked = [path for path in (variables.get("PYTHONPATH") or "").split(os.pathsep) if path]
    own = [path for path in sys.path if path != here]
    sys.path[:] = [str(Path(words[0]).parent), *asked, *own]
    sys.argv, sys.orig_argv = words, [sys.executable, *words]
    logging.root.handlers.clear()  # a warning while modules were loaded has made one
    logging.root.setLevel(logging.WARNING)
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status: int | str | None = 1
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as exit_:
        status = exit_.code
    except BaseException:  # as at the end of any program: fairseq's plugin may tell it otherwise
        sys.excepthook(*sys.exc_info())
    atexit._run_exitfuncs()
    sys.exit(status)
