"""Datasets from an archive of small images, decoded once into memory."""

import tarfile
import zlib
from collections.abc import Container, Sequence
from itertools import dropwhile
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from resmlp_mt.errors import UserError, reason
from resmlp_mt.files import check_is_whole, is_hidden
from resmlp_mt.vision.image_dataset import (
    ImageDataset,
    MemoryDataset,
    class_indices,
    warn_of_nesting,
)
from resmlp_mt.vision.images import (
    EXTENSIONS,
    MAX_BYTES,
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
    parts: dict[str, list[tuple[tuple[str, ...], NDArray[np.uint8] | BadImage]]] = {}
    training_classes: dict[str, set[str]] = {}
    training_folders: dict[str, set[str]] = {}
    images_of_split = ImageNames(path)
    total = 0
    words = {word for name in (*SPLITS, split, training) for word in names_of(name)}
    try:
        check_is_whole(path)
        with tarfile.open(path) as archive:
            for member in archive:
                inside = _from_split(member.name, words, member.isdir())
                if len(inside) < 2:
                    continue
                part, name, *rest = inside
                of_split, of_training = (part.lower() in names_of(s) for s in (split, training))
                if member.isdir() and of_training and not is_hidden(name):
                    training_folders.setdefault(part, set()).add(name)
                is_file = member.isfile() or member.islnk()  # tar stores equal files once
                named = images_of_split.is_image if of_split else is_image
                if not is_file or not rest or not named(member.name):
                    continue
                if of_training:
                    training_classes.setdefault(part, set()).add(name)
                if of_split:
                    image = _decode(archive, member, f"{path}:{member.name}")
                    parts.setdefault(part, []).append((inside[1:], image))
                    total += image.size if isinstance(image, np.ndarray) else 0
                    if total > MAX_MEMORY:
                        raise UserError(
                            f"--data cifar10-tar {path}: its images take more than "
                            f"{MAX_MEMORY / 2**30:.0f} GiB decoded; unpack it and give the folder."
                        )
            check_end(archive, path)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(
            f"--data cifar10-tar {path} cannot be read: {reason(error).rstrip(':')}; expected a "
            "tar file."
        ) from error
    images_of_split.warn()
    chosen = chosen_name(parts, split, f"--data cifar10-tar {path}")
    if chosen is None:
        raise UserError(f"--data cifar10-tar {path} holds no images {split}/CLASS/IMAGE.")
    paths, images = zip(*parts[chosen], strict=True)
    warn_of_nesting(paths, str(path))
    names = [name for name, *_ in paths]
    trained = chosen_name(training_classes, training, f"--data cifar10-tar {path}") or ""
    known = training_classes.get(trained, set())
    empty = sorted(training_folders.get(trained, set()) - known)
    empty = [name for name in empty if not select or name in (classes or [])]
    if empty and usual_name(split) == usual_name(training):
        raise UserError(
            f"--data cifar10-tar {path}: {chosen}/{empty[0]} holds no images "
            f"({', '.join(EXTENSIONS)})."
        )
    if classes is None:
        classes = sorted(known or set(names))
    indices = class_indices(set(names), classes, f"{split} in {path}", select=select)
    kept = zip(names, images, strict=True)
    pairs = [(image, indices[name]) for name, image in kept if name in indices]
    sources, targets = zip(*pairs, strict=True)
    return MemoryDataset(sources, targets, classes)


def _from_split(name: str, words: Container[str], is_folder: bool) -> tuple[str, ...]:
    """The parts of a path, from its split on: split, class, ..., file.

    If one split lies inside another, the innermost counts: a folder ``training`` above ``train``
    and ``val``. A class may have the name of a split, but only if no further folder follows.
    """
    parts = tuple(dropwhile(lambda part: part.lower() not in words, PurePosixPath(name).parts))
    while len(parts) > (2 if is_folder else 3) and parts[1].lower() in words:
        parts = parts[1:]
    return parts


def _decode(
    archive: tarfile.TarFile, member: tarfile.TarInfo, name: str
) -> NDArray[np.uint8] | BadImage:
    try:
        content = archive.extractfile(member)
        assert content is not None  # it is a regular file
        data = content.read(MAX_BYTES + 1)  # the size of a link is 0 in its header
        check_bytes(len(data), name)
        return np.asarray(open_image(data, name))
    except KeyError:
        return BadImage(name, f"it is a link to {member.linkname}, which the archive lacks")
    except BadImage as bad:
        return bad


def check_end(archive: tarfile.TarFile, path: Path) -> None:
    """Refuse an archive that was not read to its end.

    tarfile takes any broken header, except the first, for the end.

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
