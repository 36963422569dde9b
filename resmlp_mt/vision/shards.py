"""Datasets from WebDataset shards in a local folder: uncompressed tar files, read at random.

A shard belongs to the split that its name has as a word (:mod:`resmlp_mt.vision.splits`), or, if it
has none, its folder. Samples are ``KEY.jpg`` (or .png, .webp, ...) with the index of
the class in ``KEY.cls``, as text, or in ``KEY.json``: a number, or an object that has one as
``cls``, ``label``, ``class``, ``target``, ``class_id``, ``class_index``, ``label_id``, ... If
neither has it, it may be in ``KEY.label``, ``KEY.class``, ``KEY.target``, ..., also with ``.txt``
or ``.json`` at the end. Other files of a sample are left alone, but a warning counts the samples
with a class and no image.
"""

import json
import logging
import posixpath
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image

from resmlp_mt.errors import UserError, is_of_memory, reason
from resmlp_mt.files import is_foreign, is_hidden
from resmlp_mt.vision.archives import file_of, opened
from resmlp_mt.vision.image_dataset import ImageDataset
from resmlp_mt.vision.images import (
    EXTENSIONS,
    BadImage,
    ImageNames,
    check_bytes,
    is_image,
    open_image,
)
from resmlp_mt.vision.splits import SPLITS, find_split_folder, mentions, names_of, usual_name

logger = logging.getLogger(__name__)

#: the largest index gives the number of classes, so a wrong index must not fill the memory
MAX_CLASSES = 1_000_000
#: largest member with a class, in bytes
MAX_LABEL = 2**20
#: keys of the class in a JSON object
LABEL_NAMES = (
    "cls", "label", "class", "target", "class_id", "class_index", "class_idx", "label_id",
    "label_idx", "category_id",
)  # fmt: skip
#: fields of a sample: its image, and those that may have its class, the preferred first
IMAGE = "image"
OWN = ("cls", "cls.txt", "cls.json")
LABELS = (*OWN, "json", *(name + end for name in LABEL_NAMES[1:] for end in ("", ".txt", ".json")))
COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")

#: where a file lies: shard, offset, size and name
Member = tuple[str, int, int, str]


class ShardDataset(ImageDataset):
    """Images inside uncompressed tar files: (shard, offset, size, name) each."""

    def read(self, index: int) -> Image.Image:
        """See :meth:`ImageDataset.read`."""
        shard, offset, size, member = self.sources[index]
        name = f"{shard}:{member}"
        check_bytes(size, name)
        try:
            with open(shard, "rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            if is_of_memory(error):
                raise
            raise BadImage(name, reason(error)) from error
        return open_image(content, name)


def shard_dataset(
    source: str, split: str, classes: Sequence[str] | None, training: str
) -> ImageDataset:
    samples, targets = shard_samples(source, split)
    if classes is None:
        known = targets if split == training else shard_samples(source, training)[1]
        classes = [str(index) for index in range(max(known) + 1)]
    if max(targets) >= len(classes):
        raise UserError(
            f"--data wds {source}: {split} has class {max(targets)}, but training has "
            f"{len(classes)} classes, counted from 0."
        )
    return ShardDataset(samples, targets, classes)


def shard_files(source: str, split: str) -> list[Path]:
    """The shards of a split in a folder, or among the files of a pattern like ``{000..012}.tar``.

    ``::`` stands between several patterns, as in WebDataset.

    Raises:
        UserError: if there are none, or one is compressed, missing or named after both splits.
    """
    root = Path(source)
    if root.is_dir():
        folder = find_split_folder(root, split)
        files = sorted([*root.iterdir(), *(folder.iterdir() if folder else [])])
    else:
        words = (word for part in source.split("::") for word in expand_braces(part))
        files = [Path(name) for word in words for name in _matches(word)]
    names = {}
    for path in files:
        if path.name.lower().endswith((".tar", *COMPRESSED)) and not is_hidden(path.name):
            own = any(mentions(path.name, names_of(word)) for word in (*SPLITS, split))
            names[path] = path.name if own or path.parent == root else path.parent.name
    for path, name in names.items():
        if all(mentions(name, usual) for usual in SPLITS.values()):
            raise UserError(
                f"--data wds: {path} is named after both train and val; name it after one."
            )
    shards = [path for path, name in names.items() if mentions(name, names_of(split))]
    if split != usual_name(split):  # validation-0.tar may lie beside val-0.tar
        shards = [path for path in shards if mentions(names[path], [split])] or shards
    for path in shards:
        if not path.name.lower().endswith(".tar"):
            raise UserError(
                f"--data wds: {path} is compressed, but images are read from any place in a "
                "shard: unpack it to a .tar file, or move it away."
            )
    if not shards:
        raise UserError(
            f"--data wds: {source} holds no images in shards such as {split}-0000.tar; each shard "
            "has its split in its name."
        )
    return shards


def expand_braces(pattern: str) -> Iterator[str]:
    """``a{08..10}{b,c}`` -> a08b, a08c, ..., as in a shell and in WebDataset."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        yield pattern
        return
    first, last, words = found.groups()
    if words is None:
        padded = any(len(end) > 1 and end[0] == "0" for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        choices: Iterator[str] = (f"{n:0{width}}" for n in range(int(first), int(last) + 1))
    else:
        choices = iter(words.split(","))
    for choice in choices:
        yield from expand_braces(pattern[: found.start()] + choice + pattern[found.end() :])


def _matches(word: str) -> list[str]:
    found = [word] if Path(word).is_file() else sorted(glob(word))
    if not found:
        raise UserError(f"--data wds: there is no shard {word}: give a local folder or files.")
    return found


def shard_samples(source: str, split: str) -> tuple[list[Member], list[int]]:
    """Where the images of all shards of a split lie, and their classes."""
    samples: list[Member] = []
    targets: list[int] = []
    names = ImageNames(Path(source))
    replaced = 0  # classes from a second file of a sample
    for shard in shard_files(source, split):
        with opened(shard, "wds", "r:") as (archive, members):
            file = cast(BinaryIO, archive.fileobj)
            for image, labels, name in _samples(members, shard):
                label, number = _label(file, labels)
                if image is None:
                    if label is not None:  # else it may describe anything
                        names.is_image(Path(name).name)  # counts it
                    continue
                if label is None:
                    raise _no_class(file, labels[0])
                samples.append(image)
                targets.append(label)
                if number:
                    replaced += 1
                    first, second = labels[0][3], labels[number][3]
    names.warn()
    if replaced:
        logger.warning(
            "%s: %d of %d samples have no class in the file that is preferred, and it is read from "
            "another (such as %s, instead of %s)",
            source, replaced, len(targets), second, first,
        )  # fmt: skip
    if not samples:
        raise UserError(f"--data wds: {source} holds no images in its shards for {split}.")
    return samples, targets


def _samples(
    members: Sequence[tuple[str, tarfile.TarInfo]], shard: Path
) -> list[tuple[Member | None, list[Member], str]]:
    """The image of each sample, the files that may have its class, and the name of any other file.

    A file that is there twice, or without its other half, is refused.
    """
    samples: dict[str, dict[str, Member]] = defaultdict(dict)  # by key and field
    others: dict[str, str] = {}
    dotted: list[tuple[str, str, str]] = []  # key, path and name in the archive
    cut: set[str] = set()  # names with dots, without the extension of a file with a class
    left_out: list[str] = []  # images in hidden folders
    files = dict(members)
    # the folder that all images have in common; it alone may be hidden
    paths = (path for path, member in members if not member.isdir() and not is_foreign(path))
    folders = [posixpath.dirname(path) for path in paths if is_image(posixpath.basename(path))]
    above = posixpath.join(posixpath.commonpath(folders or [""]), "")
    for path, member in members:
        below = path.removeprefix(above)
        folder, _, name = below.rpartition("/")
        # WebDataset's rule: the key ends at the first dot of the file's name, and case is nothing
        stem, _, field = name.partition(".")
        field = field.lower()
        if member.isdir() or is_foreign(path):
            continue
        if is_hidden(below) or not stem:
            if is_hidden(folder) and is_image(name):
                left_out.append(member.name)
            continue
        key = posixpath.join(folder, stem)
        content = file_of(member, files)
        if content is None:
            others.setdefault(key, f"{member.name} (link)")
            continue
        last = posixpath.splitext(below)[1].lower()
        if last in (*EXTENSIONS, ".cls") and f".{field}" != last:
            # a second picture of this key, or a picture whose key was shortened
            dotted.append((key, below, member.name))
            continue
        cut.update(below[: -len(each) - 1] for each in LABELS if field.endswith(f".{each}"))
        if f".{field}" in EXTENSIONS:
            field = IMAGE
        elif field not in LABELS:
            others.setdefault(key, member.name)
            continue
        found = samples[key]
        twice = next((each for each in (OWN if field in OWN else (field,)) if each in found), None)
        if twice is not None:
            raise UserError(
                f"--data wds: {shard} has both {found[twice][3]} and {member.name} for "
                f"{stem!r}: give each sample a key of its own."
            )
        found[field] = (str(shard), content.offset_data, content.size, member.name)
    if left_out:
        logger.warning(
            "%s: %d %s in hidden folders left out (first: %s)",
            shard, len(left_out), "image" if len(left_out) == 1 else "images", left_out[0],
        )  # fmt: skip
    for key, below, full in dotted:
        own, last = posixpath.splitext(below)
        if IMAGE not in samples[key] or own in cut or last.lower() == ".cls":
            stem, _, field = posixpath.basename(below).partition(".")
            raise UserError(
                f"--data wds: {shard}: WebDataset takes {full} for {field!r} of {stem!r}: "
                "write keys without dots."
            )
    for key, found in samples.items():
        if IMAGE not in found and not found.keys().isdisjoint(OWN):
            label = next(found[field] for field in OWN if field in found)
            raise UserError(
                f"--data wds: {shard} has {label[3]}, but no image of that name "
                f"({', '.join(EXTENSIONS)})."
            )
        if found.keys() == {IMAGE}:
            raise UserError(
                f"--data wds: {shard} has no class for {key}: {posixpath.basename(key)}.cls is "
                "missing."
            )
    return [
        (found.get(IMAGE), labels, others.get(key, labels[0][3]))
        for key, found in samples.items()
        if (labels := [found[field] for field in LABELS if field in found])
    ]


def _text(file: BinaryIO, member: Member) -> bytes:
    """What should be the number of a class."""
    _, offset, size, name = member
    file.seek(offset)
    text = file.read(min(size, MAX_LABEL)).strip()
    text = text.removeprefix(b"\xef\xbb\xbf").strip(b"\"' \r\n\t")  # of editors and of JSON
    return _json_label(text) if name.lower().endswith(".json") else text


def _label(file: BinaryIO, labels: Iterable[Member]) -> tuple[int | None, int]:
    """The class in the first of some files that has a usable one, and the number of that file."""
    found = ((_whole(_text(file, label)), number) for number, label in enumerate(labels))
    return next(
        (each for each in found if each[0] is not None and each[0] < MAX_CLASSES), (None, 0)
    )


def _no_class(file: BinaryIO, label: Member) -> UserError:
    text = _text(file, label)
    fields = f" (as {', '.join(LABEL_NAMES)})" if text.startswith(b"{") else ""
    right = fields if _whole(text) is None else f" below {MAX_CLASSES:,}"
    return UserError(
        f"--data wds: {label[0]}, {label[3]}: expected a class index{right}, but found "
        f"{text[:20]!r}."
    )


def _json_label(text: bytes) -> bytes:
    """The class in JSON as text, or the whole text if there is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, dict):
        value = {key.lower(): v for key, v in value.items()} | value
        found = [value[key] for key in LABEL_NAMES if key in value]
        value = next((v for v in found if _whole(v) is not None), found[0] if found else None)
    return str(value).encode() if isinstance(value, int | float | str) else text


def _whole(value: Any) -> int | None:
    """A whole number, also as the float into which tables with gaps turn it, like ``3.0``."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    number = re.fullmatch(r"([0-9]+)(?:\.0*)?", text.strip())
    return int(number[1][:20]) if number else None  # int() refuses thousands of digits
