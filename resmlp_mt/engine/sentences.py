"""Divides text into sentences and the white space between them, and joins their translations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import sentencex

from resmlp_mt import language_codes
from resmlp_mt.engine import inputs
from resmlp_mt.text import SURROGATE

if TYPE_CHECKING:
    from resmlp_mt.engine.doubts import Doubts
    from resmlp_mt.engine.model_folder import TranslationModel
    from resmlp_mt.engine.translator import Translator

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
    """Divide a text; the segments, joined in order, are the text, with U+FFFD for half a character.

    Sentences end where ``sentencex`` ends them for the language, and at every line break. White
    space around a sentence does not belong to it.

    Args:
        language: the code of the text's language, however it is spelt; languages without rules use
            those of a related language, else those of English.
    """
    language = language_codes.base(language)
    found: list[Segment] = []
    start = 0
    for number, line in enumerate(_LINE_BREAK.split(SURROGATE.sub("\ufffd", text))):
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


def joined(parts: Iterable[Segment], translations: Iterable[str], space: str) -> str:
    """The text of segments, with a translation in the place of each sentence.

    Args:
        space: divides translations of sentences between which the source has nothing, as Chinese
            and Japanese have it.
    """
    parts, found = list(parts), iter(translations)
    texts = [next(found) if part.is_sentence else part.text for part in parts]
    for number, (part, following) in enumerate(pairwise(parts)):
        if part.is_sentence and following.is_sentence:
            texts[number] += space
    return "".join(texts)


def translate_texts(
    translator: Translator,
    texts: Sequence[str],
    first_sentence: int = 0,
    doubts: Doubts | None = None,
) -> tuple[list[str], int]:
    """Translate texts of any number of sentences, sentence by sentence.

    Args:
        first_sentence: the number of the first sentence in a longer text; sentences of other
            numbers are sampled with other draws.
        doubts: of a longer text; see :meth:`Translator.translate`.

    Returns:
        The best translation of each text, and the number of sentences. One that is too long is
        left out, with an error in the log.

    Raises:
        TypeError: if ``texts`` is a single text, or has anything but texts.
    """
    source, target = translator.loaded.source_lang, translator.loaded.target_lang
    divided = [segments(text, source) for text in inputs.texts(texts, "texts")]
    sentences = [line for parts in divided for line in _tagged(parts, translator.loaded)]
    results = translator.translate(
        sentences,
        num_hypotheses=1,
        return_scores=False,
        first_line=first_sentence,
        doubts=doubts,
    )
    found = (best.text for best, *_ in results)
    space = " " if language_codes.has_spaces(target) else ""
    # each text takes its sentences from the same iterator
    return [joined(parts, found, space) for parts in divided], len(sentences)


def _tagged(parts: Iterable[Segment], model: TranslationModel) -> Iterator[str]:
    """The sentences of a text; one without tags gets those of the sentence before it."""
    from resmlp_mt.engine.subwords import split_tags  # the server's own process does without

    tags: list[str] = []
    for part in parts:
        if part.is_sentence and model.sentencepiece is not None:
            found, text = split_tags(part.text, model.source, model.sentencepiece, model.normalizes)
            tags = found or tags
            yield " ".join([*tags, text]) if tags else part.text
        elif part.is_sentence:
            yield part.text


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
