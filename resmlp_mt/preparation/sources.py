"""Brings the text of a corpus to the disk: fetches it or takes it from a folder."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from resmlp_mt.preparation import archives, formats
from resmlp_mt.preparation.corpus import Corpus, Part, warn
from resmlp_mt.preparation.formats import TextFiles, pairs
from resmlp_mt.preparation.steps import Steps, code
from resmlp_mt.text import looks_split, looks_tokenized

LOOKED_AT = 2000
"""Pairs of each file that show whether it is raw."""


@dataclass(frozen=True)
class Inputs:
    """The text files of a corpus.

    Attributes:
        digests: SHA-256 of each, unpacked from archives.
        manifest: size and SHA-256 of every file of the corpus, as it is packed, by name.
        training: the SHA-256 there of those with training text.
    """

    train: list[TextFiles]
    valid: list[TextFiles]
    tests: dict[str, list[TextFiles]]
    digests: dict[Path, str]
    manifest: dict[str, dict[str, Any]]
    training: frozenset[str]


def gather(declared: Corpus, out: Path, from_dir: Path | None, steps: Steps) -> Inputs:
    """Makes the text available.

    Args:
        declared: the corpus.
        out: folder for downloads and unpacked members.
        from_dir: folder with the packages, instead of downloading them.
        steps: records of `out`.

    Raises:
        UserError: the text is not available, or is damaged.
    """
    places: dict[str, tuple[Path, str]] = {}
    found: dict[str, dict[str, Any]] = {}
    if declared.files:
        places = _fetch(declared, out, from_dir, steps, found)
    else:
        for part in declared.parts:
            for side in (part.source, part.target):
                path = Path(side)
                places[side] = (path, steps.digest(path))
                found[path.name] = {"size": path.stat().st_size, "sha256": places[side][1]}

    def located(parts: Sequence[Part]) -> list[TextFiles]:
        return [
            TextFiles(
                places[part.source][0],
                places[part.target][0],
                part.format,
                declared.source,
                declared.target,
                lines=part.lines,
            )
            for part in parts
        ]

    return Inputs(
        train=located(declared.train),
        valid=located(declared.valid),
        tests={name: located(parts) for name, parts in declared.tests.items()},
        digests=dict(places.values()),
        manifest=found,
        training=frozenset(
            found[name]["sha256"] for name in _file_names(declared, declared.train) & found.keys()
        ),
    )


def _file_names(declared: Corpus, parts: Sequence[Part]) -> set[str]:
    """Names of the files that hold parts of a corpus, in all of their packings."""
    sides = {side for part in parts for side in (part.source, part.target)}
    if not declared.files:
        return {Path(side).name for side in sides}
    return {
        package.file_name for side in sides for package in declared.files[side.partition(":")[0]]
    }


def _fetch(
    declared: Corpus,
    out: Path,
    from_dir: Path | None,
    steps: Steps,
    found: dict[str, dict[str, Any]],
) -> dict[str, tuple[Path, str]]:
    """Path and digest of every file and member that the parts name."""
    # here, because it imports requests, which only declared corpora need
    from resmlp_mt.preparation import download

    places: dict[str, tuple[Path, str]] = {}
    checksums = download.Checksums(out / "checksums.json")
    fetch = download.take if from_dir else download.fetch
    sides = {side for part in declared.parts for side in (part.source, part.target)}
    for name, packages in declared.files.items():
        path, digest = fetch(packages, from_dir or out / "downloads", checksums)
        found[path.name] = {"size": path.stat().st_size, "sha256": digest}
        if archives.is_archive(path.name):
            members = sorted(
                side.partition(":")[2] for side in sides if side.partition(":")[0] == name
            )
            places |= _unpack(name, path, digest, members, out, steps)
        else:
            if path.name not in checksums.known():
                formats.check(path)
            places[name] = (path, digest)
        # Only now, so that the digest of a truncated file is never recorded.
        checksums.record(path.name, digest)
    return places


def _unpack(
    name: str, archive: Path, digest: str, members: Sequence[str], out: Path, steps: Steps
) -> dict[str, tuple[Path, str]]:
    """Paths and digests of the members, by `name:member`."""
    folder = out / "unpacked" / name

    def action() -> dict[str, Any]:
        archives.unpack(archive, members, folder)
        return {}

    record = steps.run(
        f"unpack-{name}",
        {"archive": digest, "members": members, "code": code("archives.py")},
        [folder / member for member in members],
        action,
        in_summary=False,  # a check after it asks the manifest what the data were made from
    )
    outputs = record["outputs"]
    return {
        f"{name}:{member}": (
            folder / member,
            outputs[(folder / member).relative_to(out).as_posix()]["sha256"],
        )
        for member in members
    }


def warn_of_split_text(training: Iterable[TextFiles]) -> None:
    """Says which files do not look raw: a model that learns from them expects and writes the same.

    Raises:
        UserError: a file cannot be read.
    """
    for files in training:
        sides = zip(*islice(pairs(files, LOOKED_AT), LOOKED_AT), strict=True)
        for path, lines in zip((files.source, files.target), sides, strict=False):
            text = [line.decode(errors="replace") for line in lines]
            if shown := looks_split(text) or looks_tokenized(text):
                warn(f"{path} was split before ({shown}): give the raw text")
