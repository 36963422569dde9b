"""Datasets from an archive of small images, decoded once into memory."""

import posixpath
import tarfile
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.files import check_is_whole, is_foreign, is_hidden
from resmlp_mt.unpacking import DAMAGE, TarMember, members_of
from resmlp_mt.vision.image_dataset import (
    ImageDataset,
    MemoryDataset,
    class_indices,
    warn_of_nesting,
)
from resmlp_mt.vision.images import (
    EXTENSIONS,
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


@dataclass
class _Sample:
    """An image, and its path from the folder of its class on."""

    path: tuple[str, ...]
    image: NDArray[np.uint8] | BadImage


class _Reader:
    """Reads an archive once from its beginning to its end, and the files of links once more.

    Args:
        path: of the archive, for messages.
        split, training: names of the split to decode, and of that which has the classes.

    Attributes:
        parts: the images of the split, by its name in the archive.
        classes: the training classes with images, by the name of the training split.
        folders: all training classes that have a folder, likewise.
        splits: the names of splits that have images of classes.
        names: knows the images of the split, and counts its other files.
        members: everything by its path; a hard link is the member that it leads to.
    """

    def __init__(self, path: Path, split: str, training: str) -> None:
        self.parts: dict[str, list[_Sample]] = {}
        self.classes: dict[str, set[str]] = {}
        self.folders: dict[str, set[str]] = {}
        self.splits: set[str] = set()
        self.names = ImageNames(path)
        self._path = path
        self._split, self._training = names_of(split), names_of(training)
        self._words = {word for name in (*SPLITS, split, training) for word in names_of(name)}
        self.members: dict[str, tarfile.TarInfo] = {}
        self._links: list[tuple[_Sample, tarfile.TarInfo]] = []
        self._decoded: dict[int, NDArray[np.uint8] | BadImage] = {}  # by where the file lies
        self._total = 0

    def read(self, archive: tarfile.TarFile) -> None:
        """Read all of it.

        Raises:
            UserError: if it is damaged inside, or its images would fill the memory.
            Exception: one of ``DAMAGE``, if it cannot be read.
        """
        for member in members_of(archive):
            self._add(archive, member)
        check_end(archive, self._path)
        links = [(sample, _file_of(member, self.members)) for sample, member in self._links]
        found = [(file, sample) for sample, file in links if file is not None]
        # in the order of the archive: going back in a compressed one begins at its start
        for file, sample in sorted(found, key=lambda pair: pair[0].offset):
            sample.image = self._decode(archive, file)

    def _add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        linked = self.members.get(posixpath.normpath(member.linkname))
        target = linked if member.islnk() else member
        if target is not None:
            self.members[posixpath.normpath(member.name)] = target
        inside = _from_split(member.name, self._words, member.isdir())
        if len(inside) < 2 or is_foreign(member.name):
            return
        part, name, *rest = inside
        of_split, of_training = (part.lower() in own for own in (self._split, self._training))
        if member.isdir():
            if of_training and not is_hidden(name):
                self.folders.setdefault(part, set()).add(name)
            return
        below, is_link = "/".join(inside), member.islnk() or member.issym()
        if is_hidden(below):
            return
        if not (rest and is_image(below)):
            if of_split and member.issym():  # perhaps to the folder of a class
                self.names.leave_out("symbolic link")
            elif of_split and rest:
                self.names.is_image(below)  # counts it
            elif of_split and is_image(name):
                self.names.leave_out(LOOSE)
            return
        if not (is_link or member.isfile()):
            if of_split:
                self.names.leave_out("of another type")
            return
        self.splits.add(part)
        if of_training:
            self.classes.setdefault(part, set()).add(name)
        if not of_split:
            return
        if is_link:
            what = f"it is a link to {member.linkname}, which leads to no file of the archive"
            sample = _Sample(inside[1:], BadImage(f"{self._path}:{member.name}", what))
            if target is not None:
                self._links.append((sample, target))
        else:
            sample = _Sample(inside[1:], self._decode(archive, member))
        self.parts.setdefault(part, []).append(sample)

    def _decode(
        self, archive: tarfile.TarFile, file: tarfile.TarInfo
    ) -> NDArray[np.uint8] | BadImage:
        if file.offset not in self._decoded:
            name = f"{self._path}:{file.name}"
            content = archive.extractfile(file)
            assert content is not None  # it is a regular file
            image: NDArray[np.uint8] | BadImage
            try:
                check_bytes(file.size, name)
                image = np.asarray(open_image(content.read(), name))
            except BadImage as bad:
                image = bad
            self._decoded[file.offset] = image
            self._total += image.size if isinstance(image, np.ndarray) else 0
            if self._total > MAX_MEMORY:
                raise UserError(
                    f"--data cifar10-tar {self._path}: its images take more than "
                    f"{MAX_MEMORY / 2**30:.0f} GiB decoded; unpack it and give the folder."
                )
        return self._decoded[file.offset]


def archive_dataset(
    path: Path,
    split: str,
    classes: Sequence[str] | None,
    training: str,
    select: str = "",
) -> ImageDataset:
    found = _Reader(path, split, training)
    with refused(
        lambda error: (
            f"--data cifar10-tar {path} cannot be read: {reason(error).rstrip(':')}; "
            "expected a tar file."
        ),
        *DAMAGE,
    ):
        check_is_whole(path)
        with tarfile.open(path, tarinfo=TarMember) as archive:
            found.read(archive)
    found.names.warn()
    chosen = chosen_name(found.parts, split, f"--data cifar10-tar {path}")
    if chosen is None:
        other = "".join(f", but {name}" for name in [*found.members][-1:])  # pickles in CIFAR's own
        raise UserError(f"--data cifar10-tar {path} holds no images {split}/CLASS/IMAGE{other}.")
    samples = found.parts[chosen]
    warn_of_nesting([sample.path for sample in samples], str(path))
    names = {sample.path[0] for sample in samples}
    trained = chosen_name(found.classes, training, f"--data cifar10-tar {path}") or ""
    known = found.classes.get(trained, set())
    # a folder train may hold train and val
    empty = sorted(found.folders.get(trained, set()) - known - found.splits)
    empty = [name for name in empty if not select or name in (classes or [])]
    if empty and usual_name(split) == usual_name(training):
        raise UserError(
            f"--data cifar10-tar {path}: {chosen}/{empty[0]} holds no images "
            f"({', '.join(EXTENSIONS)})."
        )
    if classes is None:
        classes = sorted(known or names)
    indices = class_indices(names, classes, f"{split} in {path}", select=select)
    kept = [sample for sample in samples if sample.path[0] in indices]
    targets = [indices[sample.path[0]] for sample in kept]
    return MemoryDataset([sample.image for sample in kept], targets, classes)


def _from_split(name: str, words: Container[str], is_folder: bool) -> tuple[str, ...]:
    """The parts of a path, from its split on: split, class, ..., file.

    If one split lies inside another, the innermost counts: a folder ``training`` above ``train``
    and ``val``. A class may have the name of a split, but only if no further folder follows.
    """
    parts = tuple(dropwhile(lambda part: part.lower() not in words, PurePosixPath(name).parts))
    while len(parts) > (2 if is_folder else 3) and parts[1].lower() in words:
        parts = parts[1:]
    return parts


def _file_of(
    member: tarfile.TarInfo, members: Mapping[str, tarfile.TarInfo]
) -> tarfile.TarInfo | None:
    """The file that a symbolic link leads to; None if that is no file of the archive.

    Nothing outside of the archive is looked at.
    """
    seen: set[str] = set()
    while not member.isfile():
        path = posixpath.join(posixpath.dirname(member.name), member.linkname)
        path = posixpath.normpath(path)
        if not member.issym() or path in seen or path not in members:
            return None
        seen.add(path)
        member = members[path]
    return member


def check_end(archive: tarfile.TarFile, path: Path) -> None:
    """Refuse an archive that was not read to its end, or another one behind it.

    tarfile takes any broken header, except the first, for the end, and so it does with zeros.

    Raises:
        UserError: naming the file and the byte.
        Exception: one of ``DAMAGE``, if the rest cannot be read.
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
