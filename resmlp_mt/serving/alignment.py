"""Pieces put together to words, and attention between words."""

from collections.abc import Sequence
from typing import NamedTuple

_SPACE = "\u2581"  # sentencepiece's mark of a word's beginning


class Word(NamedTuple):
    """A word of a sentence; it is made of pieces ``begin`` to ``end``, the latter excluded."""

    text: str
    begin: int
    end: int


def words(pieces: Sequence[str]) -> list[Word]:
    """The words that pieces make; where no piece has a mark of sentencepiece, each is a word."""
    if not pieces:
        return []
    is_marked = any(piece.startswith(_SPACE) for piece in pieces)
    begins = [
        i for i, piece in enumerate(pieces) if i == 0 or piece.startswith(_SPACE) or not is_marked
    ]
    ends = [*begins[1:], len(pieces)]
    found = [
        Word("".join(pieces[begin:end]).replace(_SPACE, " ").strip(), begin, end)
        for begin, end in zip(begins, ends, strict=True)
    ]
    return [word for word in found if word.text]


def between_words(
    attention: Sequence[Sequence[float]], target: Sequence[Word], source: Sequence[Word]
) -> list[list[float]]:
    """Attention of each word of the target to each of the source.

    That of a word is the mean over its pieces, that to a word the sum over its pieces.
    """
    return [
        [round(sum(sum(row[s.begin : s.end]) for row in rows) / len(rows), 4) for s in source]
        for rows in (attention[t.begin : t.end] for t in target)
    ]
