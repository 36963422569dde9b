"""A program in a terminal of its own, which can be closed."""

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from conftest import ROOT

OWN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"


class Terminal:
    """A context manager, which kills the program at its end.

    Args:
        program: Python that defines ``main``, which is called.
        words: its command line.
    """

    def __init__(self, program: str, *words: object) -> None:
        self.screen, inside = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{OWN_TERMINAL}{program}\nmain()", *map(str, words)],
            cwd=ROOT, stdin=inside, stdout=inside, stderr=inside, start_new_session=True, text=True,
        )  # fmt: skip
        os.close(inside)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()

    def read_until(self, holds: Callable[[str], bool]) -> None:
        """Read what is shown until a condition of it holds; fails if the program ends before."""
        shown, deadline = b"", time.monotonic() + 300
        while not holds(shown.decode(errors="replace")):
            assert time.monotonic() < deadline, shown
            if select.select([self.screen], [], [], 0.05)[0]:
                shown += os.read(self.screen, 1000)

    def status_after_closing(self) -> int:
        """The exit status of the program when the terminal is closed, such as by its window."""
        os.close(self.screen)
        return self.process.wait(300)
