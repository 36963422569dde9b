"""Cuts text files into blocks of whole lines, which other processes read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 8 << 20
"""Bytes in a block, a few seconds of work for a process."""

PIECE = 1 << 20
"""Bytes of a block that a process reads at a time."""


@dataclass(frozen=True)
class TextBlock:
    """Bytes `start` to `end` of `path`: whole lines, beginning with line number `first`."""

    path: Path
    start: int
    end: int
    first: int

    def read(self) -> Iterator[str]:
        """The lines in pieces of about `PIECE` bytes; each piece ends with a line feed."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            left = self.end - self.start
            while left:
                piece = file.read(min(PIECE, left))
                piece += b"" if piece.endswith(b"\n") else file.readline()
                left -= len(piece)
                yield piece.decode()


def cut(path: Path) -> Iterator[TextBlock]:
    """The blocks of `path`; only a line feed ends a line, and the last line must have one."""
    start = first = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            block += b"" if block.endswith(b"\n") else file.readline()
            yield TextBlock(path, start, start + len(block), first)
            start += len(block)
            first += block.count(b"\n")
