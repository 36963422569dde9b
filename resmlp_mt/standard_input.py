"""The bytes of standard input, whatever a program has put in its place."""

import codecs
import io
import os
import stat
import sys
from contextlib import suppress
from typing import Any, BinaryIO

from resmlp_mt.errors import UserError


def standard_input(remedy: str) -> BinaryIO:
    """The bytes of standard input, or of the text that a program has put in its place.

    Reading waits for more, even if the program that started this one made it non-blocking.

    Raises:
        UserError: if it is closed; ``remedy`` says what to do.
    """
    stream: Any = sys.stdin
    if stream is None:
        raise UserError(f"standard input is closed: {remedy}.")
    encoding = getattr(stream, "encoding", None) or "utf-8"
    is_utf8 = stream is sys.__stdin__ or codecs.lookup(encoding).name == "utf-8"
    if hasattr(stream, "buffer") and is_utf8 and not _holds_text(stream):
        found: BinaryIO = stream.buffer
    else:
        found = io.BufferedReader(_Encoded(stream))
    with suppress(OSError, ValueError):  # not a file of the system, so nothing waits there
        os.set_blocking(found.fileno(), True)  # else a pause would look like the end
    return found


def check_is_not_output(stream: Any, given: str) -> None:
    """Refuse input that is also the file of standard output: it grows as it is read, without end.

    Args:
        stream: opened to be read.
        given: the value of ``--input``; - for standard input.

    Raises:
        UserError: if it is the same file.
    """
    try:
        read, written = os.fstat(stream.fileno()), os.fstat(sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):  # one of them is not a file of the system
        return
    if stat.S_ISREG(written.st_mode) and os.path.samestat(read, written):
        name = "standard input" if given == "-" else f"--input {given}"
        raise UserError(f"{name} is also standard output: choose another file for one of them.")


def _holds_text(stream: Any) -> bool:
    """Whether a program has read a part of the text, so that more is decoded already."""
    try:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=stream.errors)
    except io.UnsupportedOperation:
        return True
    return False


class _Encoded(io.RawIOBase):
    """The bytes of any stream with ``readline``, read a line at a time."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.rest = stream, b""

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        """That of the stream, which says whether more is waiting.

        Raises:
            io.UnsupportedOperation: if there is none.
        """
        if not hasattr(self.stream, "fileno"):
            raise io.UnsupportedOperation("fileno")
        return int(self.stream.fileno())

    def readinto(self, room: Any) -> int:
        if not self.rest:
            line = self.stream.readline()
            escaped = getattr(self.stream, "errors", None) == "surrogateescape"
            errors = "surrogateescape" if escaped else "surrogatepass"
            self.rest = line.encode("utf-8", errors) if isinstance(line, str) else line
        part, self.rest = self.rest[: len(room)], self.rest[len(room) :]
        room[: len(part)] = part
        return len(part)
