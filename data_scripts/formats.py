"""Readers of parallel text: plain lines, sgm/xml segments, TED tag files, TMX and TSV.

A line ends at "\\n" and nowhere else: U+2028, NEL, form feed or a lone carriage return inside a
sentence would shift every later pair.
"""

from __future__ import annotations

import gzip
import html
import re
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, cast

from errors import DataError

Pair = tuple[bytes, bytes]

MAX_LINE_BYTES = 1 << 20
"""A longer line is no sentence; the bound keeps memory small whatever the file holds."""

LINE_FORMATS = ("plain", "sgm", "ted")
PAIR_FORMATS = ("tmx", "tsv")

_SEGMENT = re.compile(r"<seg\b[^>]*>(.*?)</seg>", re.IGNORECASE)
_SEGMENT_START = re.compile(r"<seg\b", re.IGNORECASE)
_TED_TEXT = re.compile(r"<(title|description)>(.*)</\1>", re.IGNORECASE)
_TMX_CODES = frozenset({"bpt", "ept", "it", "ph", "ut"})
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"


@dataclass(frozen=True)
class TextFiles:
    """One piece of parallel text on disk; `target` is the same file as `source` for tmx and tsv."""

    source: Path
    target: Path
    format: str
    source_lang: str
    target_lang: str
    lines: int | None = None


def pairs(files: TextFiles, *, checked: bool = True) -> Iterator[Pair]:
    """Sentence pairs of `files` as bytes, without line ends.

    Args:
        files: what to read.
        checked: compare the number of pairs with `files.lines`; off when reading stops early.

    Raises:
        DataError: damaged gzip, sides of different length, a count other than expected, bad markup.
    """
    number = 0
    if files.format in PAIR_FORMATS:
        reader = _tsv(files) if files.format == "tsv" else _tmx(files)
        for pair in reader:
            number += 1
            yield pair
    else:
        sides = [_SIDES[files.format](path) for path in (files.source, files.target)]
        counts = [0, 0]
        for source, target in zip_longest(*sides):
            counts[0] += source is not None
            counts[1] += target is not None
            if counts[0] == counts[1]:
                yield source, target
        if counts[0] != counts[1]:
            raise DataError(
                f"{files.source} has {counts[0]} lines but {files.target} has {counts[1]}: "
                f"line {min(counts) + 1} has no partner, the files must be aligned"
            )
        number = counts[0]
    if checked and files.lines is not None and number != files.lines:
        raise DataError(
            f"{files.source} has {number} pairs where {files.lines} are expected: "
            "it is another release or incomplete; delete it and fetch it again"
        )


def decode(line: bytes, path: Path, number: int) -> str:
    """Strict UTF-8; the error names the file and the line."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: byte 0x{line[error.start]:02x} at position {error.start} is "
            "not valid UTF-8; convert the file to UTF-8 (iconv) or repair the line"
        ) from None


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with _open(path) as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES), b""), 1):
                if line.endswith(b"\n"):
                    line = line[:-1].removesuffix(b"\r")
                elif len(line) == MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes, so this is "
                        "hardly text with one sentence a line"
                    )
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: the gzip file is cut off or damaged ({error}); delete it and fetch it again"
        ) from error


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return open(path, "rb", buffering=1 << 20)


def _text(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_lines(path), 1):
        yield number, decode(line, path, number)


def _sgm(path: Path) -> Iterator[bytes]:
    """Segments of an sgm or xml test set, one to a line, entities resolved."""
    for number, line in _text(path):
        segments = _SEGMENT.findall(line)
        if len(segments) != len(_SEGMENT_START.findall(line)):
            raise DataError(f"{path}, line {number}: <seg> without </seg> on the same line")
        for segment in segments:
            yield html.unescape(segment).strip().replace("\n", " ").encode()


def _ted(path: Path) -> Iterator[bytes]:
    """Lines of a TED training file; of the tag lines only title and description hold text."""
    for _, line in _text(path):
        line = line.strip()
        tagged = _TED_TEXT.fullmatch(line)
        if tagged:
            yield tagged[2].strip().encode()
        elif not line.startswith("<"):
            yield line.encode()


_SIDES = {"plain": _lines, "sgm": _sgm, "ted": _ted}


def _tsv(files: TextFiles) -> Iterator[Pair]:
    for number, line in enumerate(_lines(files.source), 1):
        columns = line.split(b"\t")
        if len(columns) != 2:
            raise DataError(
                f"{files.source}, line {number}: {len(columns)} columns where two are expected "
                "(source, tab, target)"
            )
        yield columns[0], columns[1]


def _tmx(files: TextFiles) -> Iterator[Pair]:
    """Translation units that have both languages ("en" also takes "en-GB"); others are no pairs."""
    path = files.source
    empty = True
    langs: set[str] = set()
    try:
        with _open(path) as file:
            events = ElementTree.iterparse(file, events=("start", "end"))
            _, root = next(events)
            for event, element in events:
                if event == "end" and _local_name(element) == "tu":
                    sides = _tmx_unit(element)
                    langs.update(sides)
                    source = _tmx_side(sides, files.source_lang)
                    target = _tmx_side(sides, files.target_lang)
                    if source is not None and target is not None:
                        empty = False
                        yield source.encode(), target.encode()
                    # Finished units would otherwise all stay in memory, below <body>.
                    for child in root:
                        child.clear()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: the gzip file is cut off or damaged ({error}); delete it and fetch it again"
        ) from error
    except ElementTree.ParseError as error:
        raise DataError(
            f"{path}: not well-formed TMX ({error}); mend it or export it again"
        ) from error
    if empty:
        raise DataError(
            f"{path} has no unit with both {files.source_lang} and {files.target_lang}; "
            f"it has: {', '.join(sorted(langs)) or 'none at all'}"
        )


def _tmx_unit(unit: ElementTree.Element) -> dict[str, str]:
    """Text by language tag, in lower case and with hyphens."""
    sides: dict[str, str] = {}
    for variant in unit.iterfind("{*}tuv"):
        segment = variant.find("{*}seg")
        if segment is not None:
            lang = variant.get(_XML_LANG) or variant.get("lang") or ""
            sides.setdefault(_tag(lang), _tmx_text(segment).replace("\n", " "))
    return sides


def _tmx_side(sides: Mapping[str, str], lang: str) -> str | None:
    """The text in `lang`, else in a narrower or wider one: "pt" for "pt-BR", but not "pt-PT"."""
    wanted = _tag(lang)
    if wanted in sides:
        return sides[wanted]
    for tag, text in sides.items():
        if tag.startswith(f"{wanted}-") or wanted.startswith(f"{tag}-"):
            return text
    return None


def _tmx_text(element: ElementTree.Element) -> str:
    """Text without inline codes, which hold markup of the translated document."""
    text = element.text or ""
    for child in element:
        if _local_name(child) not in _TMX_CODES:
            text += _tmx_text(child)
        text += child.tail or ""
    return text


def _tag(lang: str) -> str:
    return lang.lower().replace("_", "-")


def _local_name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
