"""Text files that may be packed by gzip, with a bound on what they unpack to."""

import codecs
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

_BZIP2 = [b"BZh%d" % size for size in range(1, 10)]

OTHERS = {
    b"\x1f\x8b": "is packed with gzip: unpack it with gunzip",
    **dict.fromkeys(
        (
            *_BZIP2,
            b"\xfd7zXZ\0",
            b"(\xb5/\xfd",
            b'\x04"M\x18',
            b"PK\3\4",
            b"7z\xbc\xaf",
            b"Rar!\x1a",
        ),
        "is packed: unpack it",
    ),
    b"%PDF-": "is a PDF: take its text out",
    b"PAR1\x15": "is parquet: take its text out, or name it .parquet for python -m resmlp_mt.bulk",
    # UTF-32-LE begins like UTF-16-LE
    **dict.fromkeys(
        (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE),
        "is UTF-16 or UTF-32: convert it to UTF-8 with iconv",
    ),
}
"""How files begin whose bytes look like lines, but are not."""


def other_kind(line: bytes) -> str | None:
    """What a file is that is not UTF-8 text, and what to do; None for text.

    Args:
        line: its first line.
    """
    for begin, what in OTHERS.items():
        if line.startswith(begin):
            return what
    if line.startswith((b"ustar\0", b"ustar  \0"), 257):  # of POSIX, and of GNU
        return "is a tar archive: unpack it"
    if 3 * line.count(0) > len(line.rstrip()) > 1:  # Latin script without a byte order mark
        return OTHERS[codecs.BOM_UTF16_LE]
    return None


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
