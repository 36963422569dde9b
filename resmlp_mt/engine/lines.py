"""Reads the lines to translate, and writes translations."""

from __future__ import annotations

import codecs
import errno
import io
import json
import logging
import lzma
import math
import re
import select
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, TextIO

from resmlp_mt.unpacking import other_kind

if TYPE_CHECKING:
    from resmlp_mt.engine.translation import Translation

logger = logging.getLogger(__name__)

CHUNK = 1 << 16  # bytes that are read at once
OTHER_BREAKS = re.compile("[\x85\u2028\u2029]")
LONGEST_LINE = 1 << 24  # bytes; a longer one is not a sentence, and could fill the memory


def tell_of_wrong_bytes(number: int) -> None:
    """Name a line with wrong bytes in the log."""
    logger.error("line %d is not valid UTF-8: its wrong bytes became U+FFFD", number)


def waiting_lines(
    stream: BinaryIO,
    most: int,
    errors: list[OSError] | None = None,
    wrong: Callable[[int], object] = tell_of_wrong_bytes,
) -> Iterator[list[str]]:
    """Lines of UTF-8 text, in lists of all waiting lines, but at most ``most``.

    Only the first line of a list is waited for, so that a pipe gets its line back at once. Only a
    line feed ends a line. Wrong bytes become U+FFFD, and ``wrong`` is called with the number of
    their line, from 1.

    If the stream cannot be read any further, is in another encoding, or has a line longer than
    16 MiB, the error is put into ``errors``, so that the lines before it can be translated before
    it is reported. A line that was cut off is not returned.
    """
    errors = [] if errors is None else errors
    number = 0
    for waiting in _raw_lines(stream, most, errors):
        try:
            lines = [decoded(line, place, wrong) for place, line in enumerate(waiting, number + 1)]
        except OSError as error:
            errors.append(error)
            return
        number += len(lines)
        yield lines


def decoded(line: bytes, number: int, wrong: Callable[[int], object] = tell_of_wrong_bytes) -> str:
    """A line of UTF-8, without its end and a byte order mark at the beginning of the text.

    Args:
        number: of the line, from 1.
        wrong: called with the number if the line has wrong bytes, which become U+FFFD.

    Raises:
        OSError: if the first line shows that the text is in another encoding.
    """
    if number == 1:
        if what := other_kind(line):
            raise OSError(errno.EILSEQ, f"it {what}")
        line = line.removeprefix(codecs.BOM_UTF8)
    text = line.decode("utf-8", errors="replace")
    if "\ufffd" in text and text.encode() != line:
        wrong(number)
    return text.rstrip("\r\n")


def _raw_lines(stream: BinaryIO, most: int, errors: list[OSError]) -> Iterator[list[bytes]]:
    read = stream.read1 if isinstance(stream, io.BufferedIOBase) else stream.read

    def chunks() -> Iterator[bytes]:
        try:
            while chunk := read(CHUNK):
                yield chunk
        except OSError as error:
            errors.append(error)
        except (EOFError, zlib.error, lzma.LZMAError) as error:  # of a packed file
            errors.append(OSError(errno.EIO, str(error)))

    lines: list[bytes] = []
    begun: list[bytes] = []  # the parts of an unfinished line
    size = 0  # of these parts
    for chunk in chunks():
        first, *others = chunk.split(b"\n")
        begun.append(first)
        size += len(first)
        if size > LONGEST_LINE:
            errors.append(OSError(errno.EFBIG, f"a line is longer than {LONGEST_LINE} bytes"))
            break
        if others:
            lines += [b"".join(begun), *others[:-1]]
            begun = others[-1:]
            size = len(others[-1])
        while len(lines) >= most:
            yield lines[:most]
            del lines[:most]
        if lines and not _has_more(stream):
            yield lines
            lines = []
    if not errors and (last := b"".join(begun)):  # after an error, a part of a line
        lines.append(last)
    if lines:
        yield lines


def _has_more(stream: BinaryIO) -> bool:
    """Whether something, or the end, can be read without waiting."""
    try:
        return bool(select.select([stream], [], [], 0)[0])
    except (OSError, ValueError):  # not a file of the system, so nothing waits there
        return True


def write_text(file: TextIO, number: int, translations: list[Translation], scored: bool) -> None:
    """Write the text of each translation; with scores, as ``fairseq-interactive`` prints them."""
    for translation in translations:
        if scored:
            file.write(f"D-{number}\t{_base_2(translation.score)}\t{translation.text}\n")
        else:
            file.write(f"{translation.text}\n")


def write_json(
    file: TextIO,
    source: str,
    pieces: list[str],
    translations: list[Translation],
    has_attention: bool,
) -> None:
    """Write one line of JSON; see docs/engine.md.

    Args:
        has_attention: whether the model gives it; a line that is not translated has none.
    """
    best = translations[0]
    entry = {
        "source": source,
        "translation": best.text,
        "score": json_score(best.score),
        "source_pieces": pieces,
        "pieces": best.pieces.split(),
        "alignment": alignment(best) if has_attention else None,
        "nbest": [{"translation": t.text, "score": json_score(t.score)} for t in translations],
    }
    text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
    # one line, however its reader divides lines; JSON itself escapes other signs like these
    file.write(OTHER_BREAKS.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text) + "\n")


def alignment(translation: Translation) -> list[tuple[int, int]]:
    """For each piece of a translation, the source piece that it attends to most.

    These are pairs of source and target, counted from 0, as ``fairseq-generate --print-alignment``
    prints them.
    """
    if translation.attention is None:
        return []
    between = translation.attention[:-1, :-1]  # without end-of-sentence
    if not between.numel():
        return []
    return [(source, target) for target, source in enumerate(between.argmax(dim=1).tolist())]


def _base_2(score: float) -> float:
    return score / math.log(2)


def json_score(score: float) -> float | None:
    """To base 2; None where there is no translation."""
    return _base_2(score) if math.isfinite(score) else None
