"""What a corpus is: the declarations in `corpora/*.yaml`, and a user's own folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from errors import DataError
from formats import LINE_FORMATS, PAIR_FORMATS

FOLDER = Path(__file__).parent / "corpora"


@dataclass(frozen=True)
class Package:
    """One downloadable form of a file: the same bytes at every URL."""

    urls: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def file_name(self) -> str:
        return PurePosixPath(urlsplit(self.urls[0]).path).name


@dataclass(frozen=True)
class Part:
    """Aligned text: `source` and `target` are `file` or `file:member`, local paths for `local`."""

    source: str
    target: str
    format: str = "plain"
    lines: int | None = None


@dataclass(frozen=True)
class Corpus:
    """A parallel corpus.

    Attributes:
        files: for each file its packages; the first that can be had is taken (a `.tgz` and a `.zip`
            with the same members, for example).
        valid_every: every n-th training pair is held out for validation, where no `valid` is given.
        character_coverage: share of the characters that get a piece of their own; below 1 for text
            from the web, where thousands of stray characters would fill the vocabulary.
        generator: module with a `write_corpus(folder, **arguments)`, and its arguments.
    """

    name: str
    source: str
    target: str
    licence: str = ""
    citation: str = ""
    files: Mapping[str, tuple[Package, ...]] = field(default_factory=dict)
    train: tuple[Part, ...] = ()
    valid: tuple[Part, ...] = ()
    tests: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    valid_every: int | None = None
    character_coverage: float = 1.0
    generator: Mapping[str, Any] | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        return (
            *self.train,
            *self.valid,
            *(part for parts in self.tests.values() for part in parts),
        )


def names() -> list[str]:
    """Names of the declared corpora."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(path: Path) -> Corpus:
    """The corpus declared in `path`.

    Raises:
        DataError: no YAML, an unknown or missing key, a part that names no declared file, two files
            of one name.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        content["files"] = {
            name: tuple(
                Package(**{**package, "urls": tuple(package["urls"])}) for package in packages
            )
            for name, packages in content.get("files", {}).items()
        }
        for split in ("train", "valid"):
            content[split] = tuple(Part(**part) for part in content.get(split, ()))
        content["tests"] = {
            name: tuple(Part(**part) for part in parts)
            for name, parts in content.get("tests", {}).items()
        }
        corpus = Corpus(name=path.stem, **content)
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: {error}; docs/data.md lists the keys of a corpus file") from error
    stored = Counter(package.file_name for forms in corpus.files.values() for package in forms)
    twice = sorted(name for name, count in stored.items() if count > 1)
    if twice:
        raise DataError(
            f"{path}: {', '.join(twice)} is the file name of more than one package: "
            "downloads need names of their own"
        )
    for part in corpus.parts:
        if part.format not in (*LINE_FORMATS, *PAIR_FORMATS):
            raise DataError(f"{path}: unknown format {part.format!r}")
        for side in (part.source, part.target):
            if side.partition(":")[0] not in corpus.files:
                raise DataError(f"{path}: {side!r} names none of the files {sorted(corpus.files)}")
    return corpus


def local(folder: Path, source: str, target: str, name: str = "local") -> Corpus:
    """The corpus in a folder: `train.*`, `valid.*` and any number of `test*.*`.

    Each split is a pair of files (`train.en[.gz]`, `train.de[.gz]`) or one `.tmx[.gz]` or
    `.tsv[.gz]`.

    Raises:
        DataError: a missing split or side, or two files for one.
    """
    if not folder.is_dir():
        raise DataError(f"--from-dir {folder}: no such folder")
    stems = sorted(
        {
            path.name.removesuffix(".gz").rpartition(".")[0]
            for path in folder.iterdir()
            if path.name.startswith("test") and _extension(path) in (source, target, *PAIR_FORMATS)
        }
    )
    return Corpus(
        name=name,
        source=source,
        target=target,
        train=_local_split(folder, "train", source, target),
        valid=_local_split(folder, "valid", source, target),
        tests={stem: _local_split(folder, stem, source, target) for stem in stems},
    )


def _extension(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[2]


def _local_split(folder: Path, stem: str, source: str, target: str) -> tuple[Part, ...]:
    parts = [
        Part(str(found), str(found), form)
        for form in PAIR_FORMATS
        if (found := _one_of(folder, stem, form))
    ]
    sides = [_one_of(folder, stem, lang) for lang in (source, target)]
    if sides[0] and sides[1]:
        parts.insert(0, Part(str(sides[0]), str(sides[1])))
    elif sides[0] or sides[1]:
        there, missing = (source, target) if sides[0] else (target, source)
        raise DataError(
            f"{folder} has {stem}.{there} but no {stem}.{missing}: add it (.gz is fine)"
        )
    if len(parts) != 1:
        raise DataError(
            f"{folder} must hold '{stem}' exactly once, as {stem}.{source} and {stem}.{target}, "
            f"{stem}.tmx or {stem}.tsv (each also .gz); found {len(parts)}"
        )
    return tuple(parts)


def _one_of(folder: Path, stem: str, extension: str) -> Path | None:
    found = [
        path
        for path in (folder / f"{stem}.{extension}", folder / f"{stem}.{extension}.gz")
        if path.is_file()
    ]
    if len(found) == 2:
        raise DataError(f"{found[0]} and {found[1]} are both there: remove one")
    return found[0] if found else None
