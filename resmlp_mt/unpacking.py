"""Text files that may be packed by gzip, with a bound on what they unpack to."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from resmlp_mt.errors import UserError
from resmlp_mt.files import check_is_whole

MAX_RATIO = 20
"""Largest ratio of unpacked to packed size: about 3 for text, 1000 for a bomb."""

MIN_LIMIT = 1 << 30
"""Unpacked size in bytes that is always allowed."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A plain or gzip file, open for reading.

    Raises:
        OSError: the file cannot be read.
        UserError: the file is a pointer of Git LFS, or a gzip file that is damaged or unpacks to
            more than text of its size can.
    """
    check_is_whole(path)
    if path.suffix.lower() != ".gz":
        with open(path, "rb", buffering=1 << 20) as file:
            yield file
        return
    limit = max(MIN_LIMIT, MAX_RATIO * path.stat().st_size)
    try:
        with gzip.open(path) as unpacked:
            refusal = (
                f"{path} is refused: it unpacks to over {MAX_RATIO} times its size: text never "
                "does; unpack it yourself if you trust it"
            )
            bounded = Bounded(cast(BinaryIO, unpacked), limit, refusal)
            yield cast(BinaryIO, io.BufferedReader(bounded, 1 << 18))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: the gzip file is cut off or damaged ({error}): fetch or make it again"
        ) from error


class Bounded(io.RawIOBase):
    """Reads `file`, but no more than `limit` bytes.

    Raises:
        UserError: with the text `refusal`, when it is read beyond them.
    """

    def __init__(self, file: BinaryIO, limit: int, refusal: str) -> None:
        self.file = file
        self.left = limit
        self.refusal = refusal

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self.file.read(len(buffer))
        self.left -= len(block)
        if self.left < 0:
            raise UserError(self.refusal)
        buffer[: len(block)] = block
        return len(block)
