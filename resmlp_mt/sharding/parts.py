"""Reads parts of files from the input, translates them, and writes them to the output."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resmlp_mt.engine.translator import Translator
from resmlp_mt.errors import UserError
from resmlp_mt.files import make_folder, output_file
from resmlp_mt.sharding.formats import Format, Part
from resmlp_mt.sharding.manifest import Done, Record

MOST_NAMED = 10  # lines of a part in one message
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusFile:
    """A file of the input.

    Attributes:
        path: its path, the same on every machine.
        name: name of its folder in the output.
    """

    path: Path
    name: str
    format: Format


@dataclass(frozen=True)
class Shard:
    """A part of a file; if it is finished, it has a ``record`` and no ``content``."""

    file: CorpusFile
    number: int
    part: Part
    source: str
    record: Record | None = field(default=None)

    @property
    def output(self) -> str:
        """The file for its translations, relative to the output folder.

        The names sort as the numbers do: part-00000 to part-99999, then part-a100000.
        """
        digits = f"{self.number:05d}"
        more = "" if len(digits) == 5 else chr(ord("a") + len(digits) - 6)
        return f"{self.file.name}/part-{more}{digits}{self.file.format.suffix}"


def shards(file: CorpusFile, size: int, done: Done) -> Iterator[Shard]:
    """Divide a file into shards; finished shards have no content.

    Raises:
        UserError: if it cannot be read.
    """
    for number, part in enumerate(file.format.parts(file.path, size)):
        source = hashlib.sha256(part.content).hexdigest()
        record = done.get((file.name, number))
        if record is not None and record.source == source:
            yield Shard(file, number, Part(part.first, b""), source, record)
        else:
            yield Shard(file, number, part, source)


def check_identity(files: Sequence[CorpusFile], size: int, done: Done) -> None:
    """Refuse files if the output has translations of other files of their names.

    A file is the same if it is at the same place, changed or not, or if it has the same content.

    Raises:
        UserError: naming both.
    """
    earlier: dict[str, dict[int, str]] = {}
    for record in done.values():
        earlier.setdefault(record.file, {})[record.part] = record.path
    for file in files:
        places = earlier.get(file.name, {})
        others = set(places.values()) - {"", str(file.path)}
        if not others:
            continue
        same = {shard.number for shard in shards(file, size, done) if shard.record is not None}
        if same != set(places):
            raise UserError(
                f"--output has the translation of another {file.name}, {min(others)}, and that of "
                f"{file.path} would take its place: choose another folder, or rename the file."
            )


def translate(shard: Shard, translator: Translator, folder: Path) -> Record:
    """Translate a part, and write a complete file.

    Raises:
        UserError: if a line has no text, or the file cannot be written.
    """
    if shard.record is not None:
        return shard.record
    file = shard.file
    texts = file.format.texts(shard.part, str(file.path))
    failed = translator.failed
    found = translator.translate(texts, num_hypotheses=1, first_line=shard.part.first)
    best = [translations[0] for translations in found]
    failed = translator.failed - failed
    empty = [n for n, t in enumerate(best, shard.part.first + 1) if t.score == -float("inf")]
    if empty:
        named = ", ".join(map(str, empty[:MOST_NAMED])) + ", ..." * (len(empty) > MOST_NAMED)
        logger.error("%s: lines that were left empty: %s", file.path, named)
    content = file.format.translated(shard.part, best)
    path = folder / shard.output
    make_folder(path.parent, "--output")
    with output_file(path, "--output") as partial:
        partial.write_bytes(content)
    return Record(
        file=file.name,
        part=shard.number,
        lines=len(texts),
        source=shard.source,
        output=shard.output,
        sha256=hashlib.sha256(content).hexdigest(),
        too_long=len(empty) - failed,
        failed=failed,
        path=str(file.path),
        invalid=shard.part.invalid,
    )
