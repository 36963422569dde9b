"""Tells text files from others, reads gzip with a bound on its content, and names damage."""

import codecs
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from resmlp_mt.errors import UserError
from resmlp_mt.files import check_is_whole, expanded
from resmlp_mt.standard_input import standard_input

MAX_RATIO = 20
"""Largest ratio of unpacked to packed size: about 3 for text, 1000 for a bomb."""

MIN_LIMIT = 1 << 30
"""Unpacked size in bytes that is always allowed."""

DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    OSError,  # gzip's and bz2's, which has no number
    lzma.LZMAError,
    zlib.error,
    EOFError,
    # of numbers in headers: too large, too many digits, none at all, headers without end
    OverflowError,
    ValueError,
    IndexError,  # of the map of a sparse file without end
    RecursionError,
)
"""Errors of the standard library's readers of archives for a damaged file.

A :class:`UserError` is a ``ValueError``: let it pass before.
"""

MAX_HEADER = 1 << 20
"""Largest size in bytes of all headers of a member of a tar file: names and attributes."""

ARCHIVES = {".7z", ".rar", ".zip", ".tar", ".tgz"}
PACKED = {".bz2", ".xz", ".lzma", ".zst", ".lz4", ".z"}
DOCUMENTS = {
    *(".doc", ".docx", ".docm", ".odt", ".fodt", ".rtf", ".pages", ".epub", ".mobi", ".pdf"),
    *(".xls", ".xlsx", ".xlsm", ".ods", ".fods", ".ppt", ".pptx", ".odp", ".fodp"),
}
JSON_LINES = {".jsonl", ".ndjson"}
RECORDS = {*JSON_LINES, ".parquet"}
NOT_LINES = {
    *(".json", ".csv", ".tsv", ".arrow", ".feather", ".po", ".pot", ".resx"),
    *(".srt", ".vtt", ".ass", ".ssa", ".sbv", ".ttml", ".dfxp"),
    *(".sgm", ".sgml", ".xml", ".html", ".htm", ".xhtml"),
    *(".tmx", ".tbx", ".xlf", ".xliff", ".sdlxliff", ".mxliff", ".mqxliff"),
}
"""Records that no command reads, and markup."""

_OF_DOCUMENTS = (b"mimetype", b"[Content_Types].xml", b"_rels/", b"docProps/", b"word/")
"""The first file in a document that is a zip archive."""

_PACKED, _DOCUMENT = "is packed: unpack it", "is a document: take its text out"
_GZIP, _ZIP = b"\x1f\x8b", b"PK\3\4"
_PACKERS = (
    *(b"BZh%d" % size for size in range(1, 10)),
    *(b"\xfd7zXZ\0", b"(\xb5/\xfd", b'\x04"M\x18', b"7z\xbc\xaf", b"Rar!\x1a"),
)

OTHERS = {
    _GZIP: "is packed with gzip: unpack it with gunzip",
    **dict.fromkeys((*_PACKERS, _ZIP), _PACKED),
    **dict.fromkeys((b"{\\rtf", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), _DOCUMENT),
    b"%PDF-": "is a PDF: take its text out",
    b"PAR1\x15": "is parquet: take its text out, or name it .parquet for python -m resmlp_mt.bulk",
    # UTF-32-LE begins like UTF-16-LE
    **dict.fromkeys(
        (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE),
        "is UTF-16 or UTF-32: convert it to UTF-8 with iconv",
    ),
}
"""The first bytes of files that look like lines of text and are something else."""


def kind_of(path: Path) -> str:
    """The end of a file's name in lower case, such as .txt, without .gz."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path).suffix.lower()


def other_name(path: Path, wrong: str = "is not lines of text") -> str | None:
    """Says what a file is, by its name, if it is neither text nor one of :data:`RECORDS`.

    Args:
        wrong: what to say of :data:`NOT_LINES`.

    Returns:
        What it is, and what to do; None for text and records.
    """
    kind = kind_of(path)
    if kind in ARCHIVES:
        return "is an archive: unpack it"
    if kind in PACKED:
        return f"{_PACKED}, or pack its text with gzip"
    if kind in DOCUMENTS:
        return _DOCUMENT
    return f"{wrong}: convert it" if kind in NOT_LINES else None


def other_kind(line: bytes) -> str | None:
    """Says what a file is if it is not UTF-8 text, and what to do; None for text.

    Args:
        line: its first line.
    """
    if line.startswith(_ZIP) and line.startswith(_OF_DOCUMENTS, 30):  # after its header
        return _DOCUMENT
    for begin, what in OTHERS.items():
        if line.startswith(begin):
            return what
    if _is_tar(line):
        return "is a tar archive: unpack it"
    parts = line.rstrip(b"\r").split(b"\r")
    is_old = len(parts) > 1 and line.count(b"\r") > 1 and all(map(bytes.strip, parts))
    if is_old and b"%|" not in line:  # of progress bars
        return "is of lines that end in carriage returns alone: convert it to line feeds"
    # Latin to Arabic script without a byte order mark: every other byte is the script's number
    if 3 * sum(byte < 9 for byte in line) > len(line.rstrip()) > 1:
        return OTHERS[codecs.BOM_UTF16_LE]
    return None


def is_packed(head: bytes) -> bool:
    """Whether a file is packed or a tar archive; zip does not count, which torch.save writes.

    Args:
        head: its first 512 bytes.
    """
    return head.startswith((_GZIP, *_PACKERS)) or _is_tar(head)


def _is_tar(head: bytes) -> bool:
    return head.startswith((b"ustar\0", b"ustar  \0"), 257)  # of POSIX, and of GNU


def open_input(name: str) -> BinaryIO:
    """The lines of ``--input NAME``, which may be packed with gzip; those of standard input for -.

    Raises:
        UserError: if it cannot be read, or is something else by its name.
    """
    path = expanded(name)
    if what := other_name(path):
        raise UserError(f"--input {name} {what}.")
    if kind_of(path) in RECORDS:
        raise UserError(f"--input {name} has records: python -m resmlp_mt.bulk translates them.")
    try:
        if name == "-":
            return standard_input("give --input FILE")
        check_is_whole(path)
        return cast(BinaryIO, gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb"))
    except OSError as error:
        raise UserError(f"--input {name} cannot be read: {error.strerror}.") from error


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


class TarMember(tarfile.TarInfo):
    """A member of a tar file, for ``tarfile.open(..., tarinfo=TarMember)``: its headers are small.

    tarfile reads a header of any size into memory, and packed, a gigabyte takes a megabyte.
    """

    def _proc_member(self, archive: Any) -> tarfile.TarInfo:
        file = archive.fileobj
        archive.fileobj = _Headers(file)
        try:
            found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
            return found
        finally:
            archive.fileobj = file


class _Headers:
    """Reads the headers of a member from `file`.

    Raises:
        tarfile.ReadError: beyond `MAX_HEADER`, and for a negative size, which means the whole file.
    """

    def __init__(self, file: Any) -> None:
        self.file = file
        self.left = MAX_HEADER
        self.tell = file.tell

    def read(self, size: int) -> Any:
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError(f"the headers of a file have more than {MAX_HEADER:,} bytes")
        return self.file.read(size)


def members_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file, in its order.

    A negative size leads back in the file. Python before 3.11.14, 3.12.12 and 3.13.6 would read the
    same members for ever (CVE-2025-8194).

    Raises:
        tarfile.ReadError: at a member with such a size.
        Exception: one of ``DAMAGE``, if the archive cannot be read.
    """
    for member in archive:
        if member.size < 0 or archive.offset < member.offset_data:
            raise tarfile.ReadError(f"the size of {member.name} is negative")
        yield member


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
