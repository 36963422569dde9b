"""Divides text into sentences and the white space between them."""

import re
from typing import NamedTuple

import sentencex

from resmlp_mt import language_codes

_LINE_BREAK = re.compile(r"(\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])")
_WORD = re.compile(r"\w")
# Characters that are divided at once: with many quotation marks, the library's time grows with the
# square of the length. Longer sentences than this are too long for a model.
WINDOW = 4000


class Segment(NamedTuple):
    """A piece of text; ``start`` is its first character in the text.

    Text without words (white space, rules of dashes, emoji) is not translated.
    """

    text: str
    start: int
    is_sentence: bool


def segments(text: str, language: str) -> list[Segment]:
    """Divide a text; the segments, joined in order, are the text.

    Sentences end where ``sentencex`` ends them for the language, and at every line break. White
    space around a sentence does not belong to it.

    Args:
        language: the code of the text's language, however it is spelt; languages without rules use
            those of a related language, else those of English.
    """
    language = language_codes.base(language)
    found: list[Segment] = []
    start = 0
    for number, line in enumerate(_LINE_BREAK.split(text)):
        parts = [line] if number % 2 or not line.strip() else _sentences(line, language)
        for part in parts:
            core = part.strip()
            begin = part.find(core)
            for piece in (part[:begin], core, part[begin + len(core) :]):
                if piece:
                    is_sentence = piece is core and _WORD.search(core) is not None
                    found.append(Segment(piece, start, is_sentence))
                    start += len(piece)
    return found


def _sentences(line: str, language: str) -> list[str]:
    """The sentences of a line; joined, they are the line."""
    found: list[str] = []
    start = 0
    while len(line) - start > WINDOW:
        window = line[start : start + WINDOW]
        *whole, _ = sentencex.segment(language, window)
        if not whole:  # no sentence ends here
            whole = [window[: window.rfind(" ") + 1] or window]
        found += whole
        start += sum(map(len, whole))
    return [*found, *sentencex.segment(language, line[start:])]
