"""Runs fairseq's commands in forks of a process that has imported fairseq, which saves time."""

import io
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from fairseq_cli import generate, interactive, train, validate

from resmlp_mt.fairseq_plugin import console
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures

COMMANDS: dict[str, Callable[[], object]] = {
    "train": train.cli_main,
    "generate": generate.cli_main,
    "validate": validate.cli_main,
    "interactive": interactive.cli_main,
}


class Done(NamedTuple):
    """The result of a command: exit status, standard output and both streams together."""

    status: int
    output: str
    log: str

    @property
    def last(self) -> str:
        """Its last line, which says why it failed."""
        return (self.log.strip().splitlines() or [""])[-1]


def run(command: str, *arguments: object, text: str = "") -> Done:
    """Run ``fairseq-COMMAND`` on one thread, with ``text`` as its standard input."""
    with tempfile.TemporaryDirectory() as folder:
        streams = {name: Path(folder, name) for name in ("stdin", "stdout", "stderr")}
        streams["stdin"].write_text(text)
        child = os.fork()
        if child == 0:
            os._exit(_run(command, [str(argument) for argument in arguments], streams))
        _, status = os.waitpid(child, 0)
        output, errors = (streams[name].read_text() for name in ("stdout", "stderr"))
        return Done(os.waitstatus_to_exitcode(status), output, output + errors)


def _run(command: str, arguments: list[str], streams: dict[str, Path]) -> int:
    """In the child: run the command, and return its exit status."""
    sys.stdin = io.TextIOWrapper(streams["stdin"].open("rb"))
    sys.stdout, sys.stderr = streams["stdout"].open("w"), streams["stderr"].open("w")
    logging.disable(logging.NOTSET)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stdout)
    sys.argv = [f"fairseq-{command}", *arguments]
    torch.set_num_threads(1)
    status = 0
    try:
        COMMANDS[command]()
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            print(stopped.code, file=sys.stderr)
        status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException as error:
        sentence = console.mistake(error)
        if sentence is None:
            traceback.print_exc()
        else:
            print(sentence, file=sys.stderr)
        status = 70 if sentence is None else 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status
