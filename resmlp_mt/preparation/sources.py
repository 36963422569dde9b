"""Brings the text of a corpus to the disk: fetches it or takes it from a folder."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from resmlp_mt import language_codes
from resmlp_mt.errors import UserError
from resmlp_mt.preparation import archives, formats
from resmlp_mt.preparation.corpus import Corpus, Part, warn
from resmlp_mt.preparation.formats import TextFiles, pairs
from resmlp_mt.preparation.steps import Steps, code
from resmlp_mt.text import looks_quoted, looks_split, looks_tokenized

LOOKED_AT = 2000
"""Pairs of each file that show whether it is raw."""


class _Place(NamedTuple):
    """Where text is, with its SHA-256, and that of the archive that it was in or its own."""

    path: Path
    digest: str
    packed: str


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
    places: dict[str, _Place] = {}
    found: dict[str, dict[str, Any]] = {}
    if declared.files:
        places = _fetch(declared, out, from_dir, steps, found)
    else:
        for part in declared.parts:
            for side in (part.source, part.target):
                path = Path(side)
                digest = steps.digest(path)
                places[side] = _Place(path, digest, digest)
                found[path.name] = {"size": path.stat().st_size, "sha256": digest}

    def located(parts: Sequence[Part]) -> list[TextFiles]:
        return [
            TextFiles(
                places[part.source].path,
                places[part.target].path,
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
        digests={place.path: place.digest for place in places.values()},
        manifest=found,
        training=frozenset(
            places[side].packed for part in declared.train for side in (part.source, part.target)
        ),
    )


def _fetch(
    declared: Corpus,
    out: Path,
    from_dir: Path | None,
    steps: Steps,
    found: dict[str, dict[str, Any]],
) -> dict[str, _Place]:
    """The place of every file and member that the parts name."""
    # here, because it imports requests, which only declared corpora need
    from resmlp_mt.preparation import download

    places: dict[str, _Place] = {}
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
            places[name] = _Place(path, digest, digest)
        # Only now, so that the digest of a truncated file is never recorded.
        checksums.record(path.name, digest)
    return places


def _unpack(
    name: str, archive: Path, digest: str, members: Sequence[str], out: Path, steps: Steps
) -> dict[str, _Place]:
    """The places of the members, by `name:member`."""
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
    places: dict[str, _Place] = {}
    for member in members:
        path = folder / member
        own = record["outputs"][path.relative_to(out).as_posix()]["sha256"]
        places[f"{name}:{member}"] = _Place(path, own, digest)
    return places


HEADER = re.compile(
    "(source|src|target|tgt|trg)([_ ](text|sentence|segment|lang|language))?"
    "|(text|sentence|segment|lang)[_ ]?[12]|translation|reference"
    "|english|german|french|spanish|italian|portuguese|dutch|russian|polish|czech|turkish|arabic"
    "|hindi|chinese|japanese|korean|vietnamese"
)
"""Names that tables give to columns of text, besides codes of the languages."""


def refuse_headers(inputs: Inputs) -> None:
    """Refuse text whose first line names the columns, as tables have it: it would be a sentence.

    Raises:
        UserError: naming the file.
    """
    for files in (*inputs.train, *inputs.valid, *chain(*inputs.tests.values())):
        for pair in islice(pairs(files, 1), 1):
            names = [side.decode("utf-8-sig", "replace").strip(' "').lower() for side in pair]
            languages = files.source_lang, files.target_lang
            if names[0] != names[1] and all(
                HEADER.fullmatch(name) or language_codes.find(name, [language])
                for name, language in zip(names, languages, strict=True)
            ):
                raise UserError(
                    f"{files.source}: its first pair, {names[0]!r} and {names[1]!r}, looks like a "
                    "header of columns: remove that line"
                )


def warn_of_unusual_text(training: Iterable[TextFiles]) -> None:
    """Says which files do not look raw: a model that learns from them expects and writes the same.

    Also says which have the same text on both sides, as a file that was copied under a wrong name.

    Raises:
        UserError: a file cannot be read.
    """
    for files in training:
        looked_at = list(islice(pairs(files, LOOKED_AT), LOOKED_AT))
        same = sum(source == target for source, target in looked_at)
        if same > len(looked_at) / 2:
            warn(
                f"{same} of the first {len(looked_at)} pairs of {files.source} are the same on "
                "both sides"
            )
        sides = zip(*looked_at, strict=True)
        for path, lines in zip((files.source, files.target), sides, strict=False):
            text = [line.decode(errors="replace") for line in lines]
            if shown := looks_split(text) or looks_tokenized(text):
                warn(f"{path} was split before ({shown}): give the raw text")
            if line := looks_quoted(text):
                warn(f"{path} has the quotes of a table (CSV), as in {line}: they would be learnt")
