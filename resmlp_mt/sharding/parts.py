"""Reads parts of files from the input, translates them, and writes them to the output."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from resmlp_mt.engine.translator import Translator
from resmlp_mt.files import make_folder, output_file
from resmlp_mt.sharding.formats import Format, Part
from resmlp_mt.sharding.manifest import Done, Record


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
        """The file for its translations, relative to the output folder."""
        return f"{self.file.name}/part-{self.number:05d}{self.file.format.suffix}"


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
    best = [found[0] for found in translator.translate(texts, num_hypotheses=1)]
    failed = translator.failed - failed
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
        too_long=sum(t.score == -float("inf") for t in best) - failed,
        failed=failed,
    )
