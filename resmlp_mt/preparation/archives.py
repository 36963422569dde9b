"""Safe unpacking of chosen members of tar and zip archives."""

import bz2
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any

from resmlp_mt.errors import UserError
from resmlp_mt.preparation.steps import atomic_write
from resmlp_mt.unpacking import DAMAGE, MAX_RATIO, MIN_LIMIT, Bounded, TarMember, members_of

OPENERS: dict[tuple[str, ...], Callable[..., Any]] = {
    (".tgz", ".tar.gz"): gzip.open,
    (".tbz", ".tbz2", ".tar.bz2"): bz2.open,
    (".txz", ".tar.xz"): lzma.open,
    (".tar",): open,
}
"""How a tar file of each name is opened."""

NAMES = (*chain.from_iterable(OPENERS), ".zip")
"""What the names of archives end in; a single gzip file is not an archive."""

OTHERS = (".bz2", ".xz", ".lzma", ".zst", ".lz4", ".z", ".7z", ".rar")
"""What the names of files end in that are packed otherwise."""


def is_archive(name: str) -> bool:
    """Whether a file of this name is a tar or zip archive."""
    return name.lower().endswith(NAMES)


def unpack(
    archive: Path, members: Collection[str], target: Path, limit: int | None = None
) -> list[Path]:
    """Writes the wanted members of `archive` below `target`.

    All members are checked, wanted or not. The archive is refused, and nothing more of it is
    written, if it has a link, a device or a member that would leave `target`.

    Args:
        archive: tar file, plain or packed by gzip, bzip2 or xz, or zip file.
        members: names of regular files in it.
        target: folder for them.
        limit: largest total size of the unpacked members, in bytes; by default `MAX_RATIO` times
            the size of the archive, at least `MIN_LIMIT`.

    Raises:
        UserError: an unsafe, damaged or too large archive, or a missing member.
    """
    if limit is None:
        limit = max(MIN_LIMIT, MAX_RATIO * archive.stat().st_size)
    unpack_format = _unpack_zip if archive.suffix.lower() == ".zip" else _unpack_tar
    try:
        written = unpack_format(archive, members, target, limit)
    except UserError:
        raise
    except DAMAGE as error:
        if getattr(error, "errno", None) is not None:
            raise  # of the disk
        raise UserError(
            f"{archive}: the archive is cut off or damaged ({error}); delete it and fetch it again"
        ) from error
    except RuntimeError as error:
        # Raised by zipfile for encryption and for an unknown compression.
        raise UserError(
            f"{archive} cannot be unpacked ({error}): "
            "it must be without a password, stored or compressed by deflate, bzip2 or lzma"
        ) from error
    missing = sorted(set(members) - set(written))
    if missing:
        raise UserError(f"{archive} has no member {', '.join(missing)}: it is another release")
    return [written[member] for member in members]


def _unpack_tar(
    archive: Path, members: Collection[str], target: Path, limit: int
) -> dict[str, Path]:
    written: dict[str, Path] = {}
    unpacked = 0
    name = archive.name.lower()
    opened = next(opener for ends, opener in OPENERS.items() if name.endswith(ends))
    # A stream ("r|") reads the archive once, and sizes are checked before data is decompressed;
    # a header can be of any size.
    with (
        opened(archive, "rb") as file,
        tarfile.open(
            fileobj=Bounded(file, limit, _too_large(archive, limit)), mode="r|", tarinfo=TarMember
        ) as tar,
    ):
        for info in members_of(tar):
            name = info.name.removeprefix("./")
            try:
                tarfile.data_filter(info, str(target))
            except tarfile.FilterError as error:
                raise UserError(f"{archive} is refused: {error}") from error
            if PurePosixPath(name).is_absolute():
                raise UserError(f"{archive} is refused: {name} is an absolute name")
            if not (info.isreg() or info.isdir()):
                raise UserError(f"{archive} is refused: {name} is a link or a device")
            unpacked += info.size
            _check_size(archive, unpacked, limit)
            if name in members and info.isreg():
                source = tar.extractfile(info)
                assert source is not None  # a regular file
                written[name] = _copy(source, target / name)
        # The checksum of a packed file is at its end.
        while block := file.read(1 << 20):
            unpacked += len(block)
            _check_size(archive, unpacked, limit)
    return written


def _unpack_zip(
    archive: Path, members: Collection[str], target: Path, limit: int
) -> dict[str, Path]:
    written: dict[str, Path] = {}
    with zipfile.ZipFile(archive) as file:
        infos = file.infolist()
        # zipfile does not read more of a member than its declared size.
        _check_size(archive, sum(info.file_size for info in infos), limit)
        for info in infos:
            name = info.filename
            if info.header_offset < 0:  # zipfile would seek there
                raise zipfile.BadZipFile(f"{name} lies before the beginning")
            if not (target / name).resolve().is_relative_to(target.resolve()):
                raise UserError(f"{archive} is refused: {name} would be outside the target folder")
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{archive} is refused: {name} is a link or a device")
        for info in infos:
            if info.filename in members and not info.is_dir():
                with file.open(info) as source:
                    written[info.filename] = _copy(source, target / info.filename)
    return written


def _check_size(archive: Path, unpacked: int, limit: int) -> None:
    if unpacked > limit:
        raise UserError(_too_large(archive, limit))


def _too_large(archive: Path, limit: int) -> str:
    return (
        f"{archive} is refused: it unpacks to more than {limit} bytes, "
        f"over {MAX_RATIO} times its size"
    )


def _copy(source: IO[bytes], path: Path) -> Path:
    with atomic_write(path) as file:
        shutil.copyfileobj(source, file, 1 << 20)
    return path
