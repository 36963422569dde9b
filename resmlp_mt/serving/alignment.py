"""Joins pieces to words, and turns attention between pieces into attention between words."""

from collections.abc import Sequence
from typing import NamedTuple

from resmlp_mt.text import join_pieces

_SPACE = "\u2581"  # sentencepiece's mark of a word's beginning


class Word(NamedTuple):
    """A word of a sentence, made of pieces ``begin`` to ``end`` (excluded)."""

    text: str
    begin: int
    end: int


def words(pieces: Sequence[str]) -> list[Word]:
    """The words of pieces; if no piece has sentencepiece's mark, each piece is a word."""
    if not pieces:
        return []
    # A model with --treat_whitespace_as_suffix has its marks at the ends; a piece that is nothing
    # but a mark shows neither, unless it is the first.
    is_marked = pieces[0] == _SPACE or any(
        piece.startswith(_SPACE) and piece != _SPACE for piece in pieces
    )
    is_ended = not is_marked and any(piece.endswith(_SPACE) for piece in pieces)
    begins = [
        i
        for i, piece in enumerate(pieces)
        if i == 0
        or (pieces[i - 1].endswith(_SPACE) if is_ended else piece.startswith(_SPACE))
        or not (is_marked or is_ended)
    ]
    ends = [*begins[1:], len(pieces)]
    found = [
        Word(join_pieces(pieces[begin:end]).strip(), begin, end)
        for begin, end in zip(begins, ends, strict=True)
    ]
    return [word for word in found if word.text]


def between_words(
    attention: Sequence[Sequence[float]], target: Sequence[Word], source: Sequence[Word]
) -> list[list[float]]:
    """Attention of each target word to each source word.

    It is the mean over the pieces of the target word, and the sum over those of the source word.
    """
    return [
        [round(sum(sum(row[s.begin : s.end]) for row in rows) / len(rows), 4) for s in source]
        for rows in (attention[t.begin : t.end] for t in target)
    ]
