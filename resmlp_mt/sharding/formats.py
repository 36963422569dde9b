"""File formats of a corpus: divides files into parts, and writes parts with translations."""

from __future__ import annotations

import gzip
import io
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from resmlp_mt.engine.lines import json_score, waiting_lines
from resmlp_mt.engine.translation import Translation
from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.files import check_is_whole
from resmlp_mt.unpacking import JSON_LINES, kind_of, other_name

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """Some lines of a file.

    Attributes:
        first: number of the first line in its file, from 0.
        content: the lines, in the format of the file.
        invalid: number of lines that were not UTF-8: their wrong bytes became U+FFFD.
    """

    first: int
    content: bytes
    invalid: int = 0


def format_of(path: Path, column: str) -> Format:
    """The format of a file, by its name; the default is text.

    Args:
        column: the field of a record that is translated.

    Raises:
        UserError: if the file cannot be read, or this command has no format for its name.
    """
    try:
        check_is_whole(path)
    except OSError as error:
        raise UserError(f"--input {path} cannot be read: {reason(error)}.") from error
    if what := other_name(path, "is neither text nor .jsonl nor .parquet"):
        raise UserError(f"--input {path} {what}.")
    kind = kind_of(path)
    is_packed = path.suffix.lower() == ".gz"
    if kind == ".parquet":
        if is_packed:
            raise UserError(f"--input {path} is packed: parquet files have their own compression.")
        return Parquet(column)
    if kind in JSON_LINES:
        return JsonLines(column, is_packed)
    return Text(is_packed)


class Text:
    """One sentence per line, as ``translate`` reads and writes it; may be packed with gzip."""

    def __init__(self, is_packed: bool) -> None:
        self.is_packed = is_packed
        self.suffix = ".txt" + ".gz" * is_packed

    def parts(self, path: Path, size: int) -> Iterator[Part]:
        return _lines(path, size, self.is_packed)

    def texts(self, part: Part, origin: str) -> list[str]:
        return part.content.decode().split("\n")

    def translated(self, part: Part, best: Sequence[Translation]) -> bytes:
        return _written([translation.text for translation in best], self.is_packed)


class JsonLines(Text):
    """One object per line; it is written with ``id``, ``translation`` and ``score`` added."""

    def __init__(self, column: str, is_packed: bool) -> None:
        super().__init__(is_packed)
        self.column, self.suffix = column, self.suffix.replace("txt", "jsonl")

    def texts(self, part: Part, origin: str) -> list[str]:
        texts = []
        for number, line in enumerate(part.content.decode().split("\n"), start=part.first + 1):
            try:
                texts.append(_text_of(line, self.column))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{origin}, line {number}: {error}.") from error
        return texts

    def translated(self, part: Part, best: Sequence[Translation]) -> bytes:
        lines = []
        records = part.content.decode().split("\n")
        for number, (record, translation) in enumerate(zip(records, best, strict=True), part.first):
            before = "" if "id" in json.loads(record) else f'"id": {number}, '
            added = {"translation": translation.text, "score": json_score(translation.score)}
            # as it is written: Python's floats would round its numbers
            own = record.strip()[1:-1].strip()
            lines.append(f"{{{before}{own}, {json.dumps(added, ensure_ascii=False)[1:]}")
        return _written(lines, self.is_packed)


class Parquet:
    """Tables; they are written with the columns ``id``, ``translation`` and ``score`` added."""

    suffix = ".parquet"

    def __init__(self, column: str) -> None:
        self.column = column

    def parts(self, path: Path, size: int) -> Iterator[Part]:
        import pyarrow
        import pyarrow.parquet

        with (
            refused(
                lambda error: f"{path} cannot be read as parquet ({error}).",
                *(OSError, pyarrow.ArrowException),
            ),
            pyarrow.parquet.ParquetFile(path) as file,
        ):
            rest, first = file.schema_arrow.empty_table(), 0
            for batch in file.iter_batches(size):
                rest = pyarrow.concat_tables([rest, pyarrow.Table.from_batches([batch])])
                while len(rest) >= size:
                    yield Part(first, _stream(rest.slice(0, size)))
                    rest, first = rest.slice(size), first + size
            if len(rest):
                yield Part(first, _stream(rest))

    def texts(self, part: Part, origin: str) -> list[str]:
        table = _table(part)
        try:
            for name in (self.column, "id"):
                if (count := table.column_names.count(name)) > 1:
                    raise ValueError(f"{count} columns are named {name!r}: rename all but one")
            record = dict.fromkeys(table.column_names, "")
            check_columns(record, self.column)
            values = table.column(self.column).to_pylist()
            others = [value for value in values if not isinstance(value, str | None)]
            check_columns(record | {self.column: [*others, ""][0]}, self.column)
            return [_one_line(value) for value in values]
        except ValueError as error:
            raise UserError(f"{origin}, after row {part.first}: {error}.") from error

    def translated(self, part: Part, best: Sequence[Translation]) -> bytes:
        import pyarrow
        import pyarrow.parquet

        table = _table(part)
        if "id" not in table.column_names:
            numbers = range(part.first, part.first + len(table))
            table = table.add_column(0, "id", pyarrow.array(numbers, pyarrow.int64()))
        texts = pyarrow.array([translation.text for translation in best], pyarrow.string())
        scores = [json_score(translation.score) for translation in best]
        table = table.append_column("translation", texts)
        table = table.append_column("score", pyarrow.array(scores, pyarrow.float64()))
        file = io.BytesIO()
        pyarrow.parquet.write_table(table, file)
        return file.getvalue()


Format = Text | JsonLines | Parquet
"""Divides a file into :class:`Part`, reads the texts of one, and writes it with translations.

``parts`` and ``texts`` raise ``UserError`` if the file cannot be read or a line has no text.
"""


def check_columns(record: Any, column: str) -> None:
    """Check that a record has the text to translate, or none, and that the new names are free.

    Raises:
        ValueError: saying what is wrong.
    """
    if not isinstance(record, dict):
        raise ValueError("expected an object with fields")
    if not isinstance(record.get(column, 0), str | None):
        raise ValueError(f"expected a text as {column!r}: name another one with --column")
    for taken in ("translation", "score"):
        if taken in record:
            raise ValueError(f"{taken!r} exists already: give it another name")


def _text_of(line: str, column: str) -> str:
    """The text of an object of JSON.

    Raises:
        ValueError: saying what is wrong.
        RecursionError: if it is nested too deeply.
    """
    if not line.strip():
        raise ValueError("expected an object, but the line is empty: remove it")
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"expected an object: {error.msg} at column {error.colno}") from error
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"{half} is half of a character: write both, or '\\ufffd'") from error
    check_columns(record, column)
    return _one_line(record[column])


def _one_line(value: str | None) -> str:
    """A text without line breaks; a missing one is empty."""
    return " ".join((value or "").splitlines())


def _lines(path: Path, size: int, is_packed: bool) -> Iterator[Part]:
    """The parts of a file of lines, joined by line feeds."""
    errors: list[OSError] = []
    wrong: list[int] = []
    try:
        with gzip.open(path) if is_packed else path.open("rb") as stream:
            first = 0
            for lines in waiting_lines(cast(BinaryIO, stream), size, errors, wrong.append):
                for number in wrong:
                    logger.error(
                        "%s, line %d is not valid UTF-8: its wrong bytes became U+FFFD",
                        path,
                        number,
                    )
                yield Part(first, "\n".join(lines).encode(), len(wrong))
                first += len(lines)
                wrong.clear()
    except OSError as error:
        errors.append(error)
    if errors:
        raise UserError(f"{path} cannot be read: {reason(errors[0])}.")


def _written(lines: list[str], is_packed: bool) -> bytes:
    content = "".join(f"{line}\n" for line in lines).encode()
    return gzip.compress(content, mtime=0) if is_packed else content


def _stream(table: Any) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _table(part: Part) -> Any:
    import pyarrow

    return pyarrow.ipc.open_stream(part.content).read_all()
