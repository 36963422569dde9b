"""Readers of parallel text: plain lines, sgm/xml segments, TED tag files, TMX and TSV.

A line ends at "\\n" and nowhere else: U+2028, NEL, form feed or a lone carriage return inside a
sentence would shift every later pair.
"""

import codecs
import functools
import html
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from resmlp_mt import language_codes
from resmlp_mt.errors import UserError, refused
from resmlp_mt.unpacking import opened, other_kind

Pair = tuple[bytes, bytes]

BLOCK_BYTES = 1 << 18
"""Bytes of text that are cut into lines at a time."""

MAX_LINE_BYTES = 1 << 20
"""Largest line; a longer one is not a sentence, and could fill the memory."""

LINE_FORMATS = ("plain", "sgm", "ted")
PAIR_FORMATS = ("tmx", "tsv")

ONE_SIDED, REPEATED = "units without both languages", "further texts of a language in one unit"
"""What the reader of TMX leaves out and counts."""

_SEGMENT_START = re.compile(r"<seg\b", re.IGNORECASE)
_SEGMENT_END = re.compile("</seg>", re.IGNORECASE)
_TED_TEXT = re.compile(r"<(title|description)>(.*)</\1>", re.IGNORECASE)
_TMX_CODES = frozenset({"bpt", "ept", "it", "ph", "ut"})
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"


@dataclass(frozen=True)
class TextFiles:
    """One piece of parallel text on disk; `target` is the same file as `source` for tmx and tsv.

    `left_out` counts what the reader of a tmx file, the last one, has found and left out.
    """

    source: Path
    target: Path
    format: str
    source_lang: str
    target_lang: str
    lines: int | None = None
    left_out: Counter[str] = field(default_factory=Counter, compare=False)


def blocks(
    files: TextFiles, size: int, limit: int | None = None
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Sentences of `files` as bytes, without line ends: blocks of `size` pairs, one list per side.

    Args:
        files: the files to read.
        size: pairs in a block; the last may have fewer.
        limit: largest number of pairs to read; without it, the number must be `files.lines`.

    Raises:
        UserError: damaged gzip, sides of different length, an unexpected count, bad markup.
    """
    number = 0
    for sources, targets in _blocks(files, size):
        rest = None if limit is None else limit - number
        if rest is not None and rest <= len(sources):
            if rest:
                yield sources[:rest], targets[:rest]
            return
        number += len(sources)
        yield sources, targets
    if limit is None and files.lines is not None and number != files.lines:
        raise UserError(
            f"{files.source} has {number} pairs where {files.lines} are expected: "
            "it is another release or incomplete; delete it and fetch it again"
        )


def pairs(files: TextFiles, limit: int | None = None) -> Iterator[Pair]:
    """Sentence pairs of `files`, one at a time; see `blocks`."""
    for sources, targets in blocks(files, 1000, limit):
        yield from zip(sources, targets, strict=True)


def _blocks(files: TextFiles, size: int) -> Iterator[tuple[list[bytes], list[bytes]]]:
    if files.format in PAIR_FORMATS:
        reader = _tsv(files) if files.format == "tsv" else _tmx(files)
        while block := list(islice(reader, size)):
            yield [source for source, _ in block], [target for _, target in block]
        return
    sides = [_SIDES[files.format](path) for path in (files.source, files.target)]
    count = 0
    while True:
        sources, targets = (list(islice(side, size)) for side in sides)
        if len(sources) != len(targets):
            counts = [
                count + len(block) + sum(1 for _ in side)
                for block, side in zip((sources, targets), sides, strict=True)
            ]
            raise UserError(
                f"{files.source} has {counts[0]} lines but {files.target} has {counts[1]}: "
                f"line {min(counts) + 1} has no partner, the files must be aligned"
            )
        if not sources:
            return
        count += len(sources)
        yield sources, targets


def check(path: Path) -> None:
    """Reads a gzip file to its end, where its checksum is; other files have none.

    Raises:
        UserError: it is cut off, damaged or far too large.
    """
    if path.suffix.lower() == ".gz":
        with opened(path) as file:
            while file.read(1 << 20):
                pass


def decode(line: bytes, path: Path, number: int) -> str:
    """Decodes strict UTF-8; the error names the file and the line."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: byte 0x{line[error.start]:02x} at position {error.start} is "
            "not valid UTF-8; convert the file to UTF-8 (iconv) or repair the line"
        ) from None


def decode_lines(text: bytes, path: Path, first: int) -> list[str]:
    """`decode` for consecutive lines, a line feed between them; `first` is the number of the first.

    Raises:
        UserError: as `decode`.
    """
    try:
        # All at once, which is many times faster.
        return text.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return [decode(line, path, number) for number, line in enumerate(text.split(b"\n"), first)]


def _lines(path: Path) -> Iterator[bytes]:
    number, rest = 0, b""
    with opened(path) as file:
        # In blocks, because a call for each line takes longer than all else in this process.
        while block := file.read(BLOCK_BYTES):
            is_first = number == 0 and not rest
            if is_first and (what := other_kind(block.partition(b"\n")[0])):
                raise UserError(f"{path} {what}")
            text = rest + (block.removeprefix(codecs.BOM_UTF8) if is_first else block)
            *lines, rest = text.split(b"\n")
            if len(text) >= MAX_LINE_BYTES:  # else no line is that long
                for place, line in enumerate((*lines, rest), number + 1):
                    if len(line) >= MAX_LINE_BYTES:
                        raise UserError(
                            f"{path}, line {place}: longer than {MAX_LINE_BYTES} bytes, so this is "
                            "hardly text with one sentence a line"
                        )
            number += len(lines)
            yield from [line.removesuffix(b"\r") for line in lines] if b"\r" in text else lines
        if rest:
            yield rest


def _text(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_lines(path), 1):
        yield number, decode(line, path, number)


def _sgm(path: Path) -> Iterator[bytes]:
    """Segments of an sgm or xml test set, one per line, with entities resolved."""
    for number, line in _text(path):
        # Cut at every start, so that each character is read once, whatever the line is.
        for started in _SEGMENT_START.split(line)[1:]:
            _, tag_end, content = started.partition(">")
            segment, *ended = _SEGMENT_END.split(content, maxsplit=1)
            if not tag_end or not ended:
                raise UserError(f"{path}, line {number}: <seg> without </seg> on the same line")
            yield html.unescape(segment).strip().replace("\n", " ").encode()


def _ted(path: Path) -> Iterator[bytes]:
    """Lines of a TED training file; among tag lines, only title and description have text."""
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
            raise UserError(
                f"{files.source}, line {number}: {len(columns)} columns where two are expected "
                "(source, tab, target)"
            )
        yield columns[0], columns[1]


def _tmx(files: TextFiles) -> Iterator[Pair]:
    """Translation units with both languages; others are left out, and so are repeated languages."""
    path = files.source
    empty = True
    langs: set[str] = set()
    wanted = _tag(files.source_lang), _tag(files.target_lang)
    files.left_out[ONE_SIDED] = files.left_out[REPEATED] = 0
    encoding = f"{path} has an encoding that cannot be read"
    to_utf8 = "convert it to UTF-8, and name that in its first line"
    with (
        refused(
            lambda error: f"{path} is not well-formed TMX ({error}): repair or export it again",
            ElementTree.ParseError,
        ),
        # of expat, for most encodings
        refused(lambda error: f"{encoding} ({error}): {to_utf8}", ValueError, LookupError),
        opened(path) as file,
    ):
        for unit in _tmx_units(file):
            variants = _tmx_unit(unit)
            sides = dict(reversed(variants))  # of a repeated language, the first text
            langs.update(sides)
            tags = tuple(sorted(sides))
            source, target = (_tmx_tag(lang, tags) for lang in wanted)
            if source is None or target is None or source == target:
                files.left_out[ONE_SIDED] += 1
                continue
            ours = [tag for tag, _ in variants if any(_tmx_tag(w, (tag,)) for w in wanted)]
            files.left_out[REPEATED] += len(ours) - 2
            empty = False
            yield sides[source].encode(), sides[target].encode()
    if empty:
        raise UserError(
            f"{path} has no unit with both {files.source_lang} and {files.target_lang}; "
            f"it has: {', '.join(sorted(langs)) or 'none at all'}"
        )


def _tmx_units(file: BinaryIO) -> Iterator[ElementTree.Element]:
    """The translation units, each removed from memory after it is used."""
    path: list[ElementTree.Element] = []
    units = 0
    # expat loads no external entities, and ends where internal ones grow too large
    for event, element in ElementTree.iterparse(file, events=("start", "end")):  # nosec B314
        is_unit = _local_name(element) == "tu"
        if event == "start":
            path.append(element)
            units += is_unit
            continue
        path.pop()
        units -= is_unit
        if units == 0:
            if is_unit:
                yield element
            if path:
                path[-1].remove(element)


def _tmx_unit(unit: ElementTree.Element) -> list[tuple[str, str]]:
    """Language tag and text of each variant; tags are in lower case and with hyphens."""
    variants: list[tuple[str, str]] = []
    for variant in unit.iterfind("{*}tuv"):
        segment = variant.find("{*}seg")
        if segment is not None:
            lang = variant.get(_XML_LANG) or variant.get("lang") or ""
            variants.append((_tag(lang), _tmx_text(segment).replace("\n", " ")))
    return variants


@functools.lru_cache(256)
def _tmx_tag(wanted: str, tags: tuple[str, ...]) -> str | None:
    """The tag of a language, else the first narrower or wider one: "en-gb" for "en".

    "zh" is not wider than "zh-tw", because it means another script.
    """
    nearly = (
        tag
        for tag in tags
        if (tag.startswith(f"{wanted}-") or wanted.startswith(f"{tag}-"))
        and language_codes.script(tag) == language_codes.script(wanted)
    )
    return language_codes.find(wanted, tags) or next(nearly, None)


def _tmx_text(segment: ElementTree.Element) -> str:
    """Text without inline codes, which are markup of the translated document."""
    text = ""
    # Not recursive: the markup of a hostile file may be nested thousands of times.
    waiting: list[ElementTree.Element | str] = [segment]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            text += item
            continue
        for child in reversed(item):
            waiting.append(child.tail or "")
            if _local_name(child) not in _TMX_CODES:
                waiting.append(child)
        waiting.append(item.text or "")
    return text


def _tag(lang: str) -> str:
    return lang.lower().replace("_", "-")


def _local_name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
