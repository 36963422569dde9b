"""Tells now and then how many lines of a file are translated."""

from __future__ import annotations

import gzip
import io
import logging
import os
import stat
import threading
import time
from typing import BinaryIO

logger = logging.getLogger(__name__)

PAUSE = 5.0  # seconds between two messages
CHUNK = 1 << 20  # bytes that are read at once


class Progress:
    """The number of lines that are done, in the log at most every ``PAUSE`` seconds.

    Several threads may use it at the same time.

    Args:
        stream: the text, of which nothing is read yet. Where it is a file, and not packed, messages
            have the number of all its lines.
        what: the things that are counted.
    """

    def __init__(self, stream: BinaryIO, what: str = "lines") -> None:
        self._what = what
        self._done = 0
        self._told = time.monotonic()
        self._place = None if what != "lines" else _place(stream)
        self._all: int | None = None
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many more are done."""
        with self._lock:
            self._done += count
            if time.monotonic() - self._told >= PAUSE:
                self._tell()

    def reach(self, done: int) -> None:
        """So many are done, those included that needed no work, such as empty lines."""
        self.add(done - self._done)

    def end(self) -> None:
        """Tell the last number, however short the time was."""
        with self._lock:
            self._tell()

    def _tell(self) -> None:
        if self._place is not None:
            self._all = _count(*self._place)
            self._place = None
        total = "" if self._all is None else f" of {self._all:,}"
        logger.info("%s%s %s are translated", f"{self._done:,}", total, self._what)
        self._told = time.monotonic()


def is_file(stream: BinaryIO) -> bool:
    """Whether all of a stream can be read now: not a pipe, and nobody types it."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):
        return False


def _place(stream: BinaryIO) -> tuple[int, int] | None:
    """Descriptor and place in it, in bytes; None where lines cannot be counted beforehand."""
    if isinstance(stream, gzip.GzipFile) or not is_file(stream):
        return None
    try:
        return stream.fileno(), stream.tell()
    except io.UnsupportedOperation:
        return None


def _count(descriptor: int, place: int) -> int:
    """The lines of a file from a place on, whose own place does not change."""
    lines, last = 0, b"\n"
    while chunk := os.pread(descriptor, CHUNK, place):
        lines += chunk.count(b"\n")
        place += len(chunk)
        last = chunk[-1:]
    return lines + (last != b"\n")
