"""Datasets from an archive of small images, decoded once into memory."""

import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import dropwhile
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.files import check_is_whole, is_foreign, is_hidden
from resmlp_mt.unpacking import DAMAGE, TarMember, members_of
from resmlp_mt.vision.image_dataset import ImageDataset, MemoryDataset, distinct, labelled
from resmlp_mt.vision.images import (
    LOOSE,
    BadImage,
    ImageNames,
    check_bytes,
    is_image,
    open_image,
)
from resmlp_mt.vision.splits import SPLITS, chosen_name, names_of, usual_name

#: largest total size of an archive's decoded images, in bytes
MAX_MEMORY = 8 * 2**30


def archive_dataset(
    path: Path,
    split: str,
    classes: Sequence[str] | None,
    training: str,
    select: str = "",
) -> ImageDataset:
    where = f"--data cifar10-tar {path}"
    with opened(path, "cifar10-tar", "r") as (archive, found):
        members = dict(found)
        parts = _parts(members, {*SPLITS, split, training}, path)

        def of(split: str) -> str | None:
            names = [name for name in parts if name.lower() in names_of(split)]
            return chosen_name(names, split, where)

        chosen = of(split)
        if chosen is None:
            # such as the pickles in CIFAR's own
            other = "".join(f", but {name}" for name in [*members][-1:])
            raise UserError(f"{where} holds no images {split}/CLASS/IMAGE{other}.")
        part = parts[chosen]
        part.names.warn()
        if classes is None:
            trained = parts[of(training) or chosen]
            names = {inside[0] for inside in trained.images}
            classes = distinct(names | trained.folders - parts.keys())
        kept, targets = labelled(
            part.images,
            part.folders - parts.keys(),  # a folder train may hold train and val
            classes,
            f"{where}: {chosen}/",
            is_training=usual_name(split) == usual_name(training),
            select=select,
        )
        images = _decoded(archive, path, kept, members)
    return MemoryDataset(images, targets, classes)


@contextmanager
def opened(
    path: Path, kind: str, mode: Literal["r", "r:"]
) -> Iterator[tuple[tarfile.TarFile, list[tuple[str, tarfile.TarInfo]]]]:
    """An archive that was read to its end, and its members with their normal paths.

    In the block, errors of reading become a :class:`UserError`. The mode r: refuses packed ones.
    """
    plain = "a tar file" if mode == "r" else "an uncompressed tar file"
    what = f"--data {kind}: {path} cannot be read"
    with refused(lambda e: f"{what}: {reason(e).rstrip(':')}; expected {plain}.", *DAMAGE):
        check_is_whole(path)
        with tarfile.open(path, mode, tarinfo=TarMember) as archive:
            members = [(posixpath.normpath(m.name.lstrip("/")), m) for m in members_of(archive)]
            _check_end(archive, path)
            yield archive, members


@dataclass
class _Part:
    """A split of an archive."""

    names: ImageNames  # counts the files that are no images of classes
    # by the parts of their paths, from the folder of their class on
    images: dict[tuple[str, ...], tarfile.TarInfo] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)  # of classes


def _parts(
    members: Mapping[str, tarfile.TarInfo], splits: Iterable[str], path: Path
) -> dict[str, _Part]:
    """The splits that have images, by their names in the archive."""
    words = {word for name in splits for word in names_of(name)}
    parts: dict[str, _Part] = defaultdict(lambda: _Part(ImageNames(path)))
    for name, member in members.items():
        split, *inside = _from_split(name, words, member.isdir()) or [""]
        below = "/".join(inside)
        shown = inside[:1] if member.isdir() else inside
        if not inside or is_foreign(name) or is_hidden("/".join(shown)):
            continue
        part, is_loose = parts[split], len(inside) == 1
        has_name = is_image(below) and not is_loose
        if member.isdir():
            part.folders.add(inside[0])
        elif has_name and (member.isfile() or member.islnk() or member.issym()):
            part.images[tuple(inside)] = member
        elif member.issym():  # perhaps to the folder of a class
            part.names.leave_out("symbolic link")
        elif has_name:
            part.names.leave_out("of another type")
        elif not is_loose:
            part.names.is_image(below)  # counts it
        elif is_image(below):
            part.names.leave_out(LOOSE)
    return {name: part for name, part in parts.items() if part.images}


def _decoded(
    archive: tarfile.TarFile,
    path: Path,
    samples: Iterable[tarfile.TarInfo],
    members: Mapping[str, tarfile.TarInfo],
) -> list[NDArray[np.uint8] | BadImage]:
    """The images of members, each file read once and in the order of the archive.

    Going back in a compressed one begins at its start.
    """
    files = [(member, file_of(member, members)) for member in samples]
    found: dict[int, NDArray[np.uint8] | BadImage] = {}  # by where the file lies
    total = 0
    for file in sorted((f for _, f in files if f is not None), key=lambda f: f.offset):
        if file.offset in found:
            continue
        name = f"{path}:{file.name}"
        content = archive.extractfile(file)
        assert content is not None  # it is a regular file
        try:
            check_bytes(file.size, name)
            image = np.asarray(open_image(content.read(), name))
        except BadImage as bad:
            found[file.offset] = bad
            continue
        found[file.offset] = image
        total += image.size
        if total > MAX_MEMORY:
            raise UserError(
                f"--data cifar10-tar {path}: its images take more than "
                f"{MAX_MEMORY / 2**30:.0f} GiB decoded; unpack it and give the folder."
            )
    nowhere = "it is a link to {}, which leads to no file of the archive"
    return [
        BadImage(f"{path}:{member.name}", nowhere.format(member.linkname))
        if file is None
        else found[file.offset]
        for member, file in files
    ]


def _from_split(name: str, words: Container[str], is_folder: bool) -> tuple[str, ...]:
    """The parts of a path, from its split on: split, class, ..., file.

    If one split lies inside another, the innermost counts: a folder ``training`` above ``train``
    and ``val``. A class may have the name of a split, but only if no further folder follows.
    """
    parts = tuple(dropwhile(lambda part: part.lower() not in words, PurePosixPath(name).parts))
    while len(parts) > (2 if is_folder else 3) and parts[1].lower() in words:
        parts = parts[1:]
    return parts


def file_of(
    member: tarfile.TarInfo, members: Mapping[str, tarfile.TarInfo]
) -> tarfile.TarInfo | None:
    """A file itself, or that to which a link leads; None if it is no file of the archive.

    Nothing outside of the archive is looked at. ``members`` are all of them by normal paths.
    """
    seen: set[str] = set()
    while not member.isfile():
        path = member.linkname
        if member.issym():
            path = posixpath.join(posixpath.dirname(member.name.lstrip("/")), path)
        else:  # a hard link has the name of a member, which may be absolute
            path = path.lstrip("/")
        path = posixpath.normpath(path)
        if not (member.issym() or member.islnk()) or path in seen or path not in members:
            return None
        seen.add(path)
        member = members[path]
    return member


def _check_end(archive: tarfile.TarFile, path: Path) -> None:
    """Refuse an archive that was not read to its end, or another one behind it.

    tarfile takes any broken header, except the first, for the end, and so it does with zeros.

    Raises:
        UserError: naming the file and the byte.
    """
    assert archive.fileobj is not None  # it is open
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if block not in (b"", bytes(tarfile.BLOCKSIZE)):
        raise UserError(
            f"--data: {path} is damaged at byte {archive.offset:,} of the archive: expected "
            "another file or its end; get it again."
        )
    while rest := archive.fileobj.read(2**20):
        if rest.strip(b"\0"):
            raise UserError(
                f"--data: {path} has another archive behind its end (joined by cat?): give the "
                "files separately, or unpack them into one folder."
            )
