"""Whether a sentencepiece model belongs to a dictionary, and how its text was prepared.

In all functions, ``data`` is the folder of the binarised text and ``path`` the file of the model,
both for messages. ``sentences`` are some of the text, as the words that were binarised; ``lines``
have their subwords joined.
"""

import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sentencepiece

from resmlp_mt.engine.subwords import SPACE, beside, split_pieces
from resmlp_mt.engine.vocabulary import SPECIAL, Vocabulary
from resmlp_mt.errors import UserError
from resmlp_mt.text import OTHER_MARKS, looks_tokenized

logger = logging.getLogger(__name__)

T = TypeVar("T")

LEAST_SHARE = 0.98
"""Share of the words in a dictionary that must be pieces; words with characters that the model does
not know do not count. If the model is the right one, all are pieces, except for a few that people
add, such as domain tags."""

LEAST_FOUND = 0.25
"""Share of the words, or of the pieces, that must be both. A model of another script knows none of
the characters."""

LEAST_USED = 0.75
"""Share of the model's pieces that source and target dictionary must have between them. The model
of the training text has all (``prepare.py``), or all but those that only occur inside of longer
ones (``fairseq-preprocess``). A model of the same corpus with twice the pieces shares a half. Where
there is text, it decides instead: a model for many languages is right, too."""

LEAST_ALIKE = 0.9
"""Share of the sentences that the model must split as they were split for the training."""

LEAST_MARKED = 0.05
"""Share of the words with the mark of another tool that makes a dictionary one of its subwords."""

LEAST_NUMBERS = 0.95
LARGE_NUMBER = 20_000
"""A dictionary has the ids of another tool if at least this share of its words are numbers, and one
is at least this large: models of numbers and of units of speech have smaller ones."""

LEAST_CHARACTERS = 0.9
"""Share of single characters in a dictionary of nothing else but tags."""

MOST_FREQUENT = 5
"""The end of a word is among that many most frequent ones, if it is a word of its own."""

BYTES = {chr(byte if chr(byte).isprintable() else 256 + byte) for byte in range(256)}
"""The characters that fairseq's ``--bpe byte_bpe`` and ``--bpe bytes`` write for bytes of UTF-8.
Languages that use more than one of those from U+0180 on use others, too."""

LEAST_OTHER_FORMS = 0.002
"""Share of words whose letters NFC changes that shows text which was not normalised. Normalised
text has none; in other text of English there are a few, and a letter of Bengali is one of them."""

LEAST_SENTENCES = 10
"""With fewer sentences, it is not known whether text was tokenized."""

MOST_TOUCHED = 0.5
"""Share of the sentences of tokenized text in which a mark ends a word, such as an abbreviation."""

MOST_COMMAS = 0.02
"""Share of the sentences of tokenized text in which a comma ends a word, as in raw text."""


def is_of_subwords(vocabulary: Vocabulary) -> bool:
    """Whether a dictionary has sentencepiece's pieces, judged by their sign for a space.

    Raises:
        UserError: if it has the subwords of another tool.
    """
    words = _words(vocabulary)
    shown = None
    for tool, pattern in OTHER_MARKS.items():
        marks = [mark.group() for word in words if (mark := pattern.search(word))]
        if len(marks) > LEAST_MARKED * len(words):
            shown = f"subwords of {tool} ('{marks[0]}')"
    numbers = [int(word) for word in words if re.fullmatch("[0-9]{1,9}", word)]
    if len(numbers) >= LEAST_NUMBERS * len(words) and max(numbers, default=0) >= LARGE_NUMBER:
        shown = "numbers for words, such as the ids of GPT-2's subwords"
    if "_EOW" in words[:MOST_FREQUENT]:
        shown = "subwords with '_EOW' between words"
    signs = {sign for sign in "".join(words) if not sign.isascii()} - {SPACE}
    if signs <= BYTES and sum(sign >= "\u0180" for sign in signs) > 1:
        shown = f"the bytes of fairseq's --bpe byte_bpe or bytes ('{max(signs)}')"
    if shown:
        raise UserError(
            f"the dictionary has {shown}, but text can only be split with sentencepiece: translate "
            "with fairseq-interactive, or train on subwords of sentencepiece "
            "(python -m resmlp_mt.prepare)."
        )
    # before a word, or after it (--treat_whitespace_as_suffix)
    return any(word.startswith(SPACE) or word.endswith(SPACE) for word in vocabulary.symbols)


def is_of_characters(vocabulary: Vocabulary) -> bool:
    """Whether a dictionary has characters alone, but for a few tags."""
    words = _words(vocabulary)
    return sum(len(word) == 1 for word in words) >= LEAST_CHARACTERS * len(words)


def warn_of_letters(data: Path, vocabularies: Iterable[Vocabulary]) -> None:
    """Warn of characters with ``|`` between words, which may also come from a formal language.

    The vocabularies belong to a model without sentencepiece.
    """
    if any("|" in _words(v)[:MOST_FREQUENT] and is_of_characters(v) for v in vocabularies):
        logger.warning(
            "the dictionaries in %s have characters and '|': if '|' stands between words, give "
            "text that is spelt so ('a | d o g'), and join the translations.", data,
        )  # fmt: skip


def prepared_with(data: Path) -> dict[str, Any]:
    """The options of ``prepare.py`` that made a folder of binarised text.

    It is empty if there is no ``manifest.json`` beside the folder, or another tool's.
    """
    try:
        manifest: Any = json.loads(beside(data, "manifest.json").read_text(encoding="utf-8"))
        return dict(manifest["options"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def check_is_raw(data: Path) -> None:
    """Refuse training text that was more than normalised before it was split into subwords.

    ``prepare.py`` writes ``manifest.json`` beside its folder.

    Raises:
        UserError: naming the options of ``prepare.py``.
    """
    options = prepared_with(data)
    steps = {
        "--tokenizer moses": options.get("tokenizer") == "moses",
        "--normalize-punctuation": options.get("normalize_punctuation") is True,
    }
    if given := [option for option, is_given in steps.items() if is_given]:
        raise UserError(
            f"{beside(data, 'manifest.json')} says that the training text was prepared with "
            f"{' and '.join(given)}, which an exported model does not apply to its input: prepare "
            "and train without, or translate with fairseq-interactive, which takes the same steps."
        )


def warn_of_tokens(data: Path, lines: Iterable[str]) -> None:
    """Warn of text in one language that Moses has tokenized, though no manifest says so."""
    text = [line for line in lines if line.strip()]
    commas = sum(re.search(r"\w,(?!\S)", line) is not None for line in text)
    shown = looks_tokenized(text)
    if shown and len(text) >= LEAST_SENTENCES and commas <= MOST_COMMAS * len(text):
        logger.warning(
            "the text in %s was tokenized before (%s), which an exported model does not do to its "
            "input: give it text that was tokenized alike, or train on raw text.", data, shown,
        )  # fmt: skip


def is_untokenized(lines: Iterable[str]) -> bool:
    """Whether marks touch words in most of the lines, as in text that no tool has tokenized."""
    text = [line for line in lines if line.strip()]
    touched = sum(re.search(r"\w[,.!?;:](?!\S)", line) is not None for line in text)
    return len(text) >= LEAST_SENTENCES and touched > MOST_TOUCHED * len(text)


def warn_of_lower_case(
    data: Path, lines: Sequence[str], processor: sentencepiece.SentencePieceProcessor | None
) -> None:
    """Warn of lower-cased source text, if the sentencepiece model does not lower-case its input.

    Without a ``processor``, words are looked up as they are.
    """
    cased = [line for line in lines if line.title() != line.lower()]  # some scripts have no case
    keeps = processor is None or "A" in processor.normalize("A")
    if keeps and len(cased) >= LEAST_SENTENCES and "".join(cased) == "".join(cased).lower():
        logger.warning("the text in %s is lower-cased: give lower-case input.", data)


def check_pieces(
    processor: sentencepiece.SentencePieceProcessor,
    path: Path,
    vocabularies: dict[str, Vocabulary],
) -> None:
    """Refuse a sentencepiece model that did not make the subwords of the training text.

    The dictionary may lack pieces: those of the other language, and rare ones.

    Args:
        vocabularies: those of source and target, by names for the message.

    Raises:
        UserError: if a dictionary has words that are not pieces.
    """
    pieces = {processor.id_to_piece(index) for index in range(len(processor))}
    shares = {name: _share(words, pieces, processor) for name, words in vocabularies.items()}
    for name, share in shares.items():
        if share < LEAST_SHARE:
            remedy = "give the one that made the training text"
            if max(shares.values()) >= LEAST_SHARE:
                remedy = (
                    "both languages need the same one; with two, translate with fairseq-interactive"
                )
            raise UserError(
                f"{path} is not the sentencepiece model of this translation model: {share:.0%} of "
                f"the words in {name} are its pieces; {remedy}."
            )


def check_splits(
    processor: sentencepiece.SentencePieceProcessor,
    path: Path,
    vocabularies: Iterable[Vocabulary],
    sentences: Sequence[Sequence[str]],
    data: Path,
) -> bool:
    """Refuse a sentencepiece model with other pieces than the training text.

    Args:
        vocabularies: those of source and target; they decide if no sentence can.
        sentences: of the source.

    Returns:
        Whether to normalise text before the model splits it. If the training text was not
        normalised, the model may lack the normal forms of letters, as for Bengali with a nukta.
        If no sentence can decide, the pieces do.

    Raises:
        UserError: if the model splits the sentences in another way, or has too many pieces.
    """
    found = needs_normalizing(processor, sentences, otherwise=None)
    if found is not None:
        return found
    if splits_alike(processor, sentences) is False:
        raise UserError(
            f"{path} is not the sentencepiece model of this translation model: it splits the text "
            f"in {data} in another way; give the one that made it."
        )
    known = {word for vocabulary in vocabularies for word in vocabulary.symbols}
    # those that were learnt from text, and so are seen there; bytes need not be
    kinds = processor.is_control, processor.is_unknown, processor.is_unused, processor.is_byte
    of_text = (i for i in range(len(processor)) if not any(kind(i) for kind in kinds))
    own = {processor.id_to_piece(i) for i in of_text}
    used = len(own & known) / len(own) if own else 1.0
    if used < LEAST_USED:
        raise UserError(
            f"{path} is not the sentencepiece model of this translation model: only {used:.0%} of "
            "its pieces are in the dictionaries; give the one that made the training text."
        )
    return is_normalized(own)


def needs_normalizing(
    processor: sentencepiece.SentencePieceProcessor,
    sentences: Sequence[Sequence[str]],
    otherwise: T,
) -> bool | T:
    """Whether the model splits sentences as they were split with or without normalising them.

    Args:
        otherwise: the answer if it splits them in another way, or none tells.
    """
    alike = (n for n in (True, False) if splits_alike(processor, sentences, n))
    return next(alike, otherwise)


def is_normalized(words: Iterable[str]) -> bool:
    """Whether the words or pieces of training text come from normalised text."""
    all_words = list(words)
    other = sum(not unicodedata.is_normalized("NFC", word) for word in all_words)
    return other <= LEAST_OTHER_FORMS * len(all_words)


def has_normalized_pieces(processor: sentencepiece.SentencePieceProcessor) -> bool:
    """:func:`is_normalized` for the pieces of a model."""
    return is_normalized(processor.id_to_piece([*range(len(processor))]))


def _words(vocabulary: Vocabulary) -> list[str]:
    """The words of a dictionary that are of text."""
    return [
        word
        for word in vocabulary.indices
        if word not in SPECIAL and not re.fullmatch(r"madeupword\d+", word)
    ]


def _share(
    vocabulary: Vocabulary, pieces: set[str], processor: sentencepiece.SentencePieceProcessor
) -> float:
    """The share of the words that are pieces, among those with characters that the model knows."""
    words = set(_words(vocabulary))
    found = len(words & pieces)
    # the model leaves unknown characters as they are, and fairseq-preprocess takes them for words
    unknown = {processor.unk_id(), processor.piece_to_id("\u2581")}
    unused = sum(
        unknown.issuperset(processor.encode(word.replace("\u2581", " "))) for word in words - pieces
    )
    if found < LEAST_FOUND * min(len(words), len(pieces)):
        unused = 0
    return found / (len(words) - unused) if len(words) > unused else 1.0


def splits_alike(
    processor: sentencepiece.SentencePieceProcessor,
    sentences: Sequence[Sequence[str]],
    normalizes: bool = True,
) -> bool | None:
    """Whether a model splits text as it was split before; None if no sentence shows it.

    Args:
        sentences: those with words that are not pieces, such as
            ``<unk>``, or are control symbols, which no text gives, do not count.
        normalizes: whether text is normalised before the model splits it.
    """
    unknown = processor.unk_id()

    def counts(ids: Sequence[int]) -> bool:
        return bool(ids) and not any(i == unknown or processor.is_control(i) for i in ids)

    def begins_with_tag(words: Sequence[str]) -> bool:
        return (
            bool(words)
            and words[0] not in SPECIAL
            and not counts(processor.piece_to_id([words[0]]))
        )

    def is_kept(words: list[str]) -> bool:
        return split_pieces(processor.decode(words), processor, normalizes) == words

    sentences = [words[1:] if begins_with_tag(words) else words for words in sentences]
    counted = [list(words) for words in sentences if counts(processor.piece_to_id([*words]))]

    def is_kept_after_tag(words: list[str]) -> bool:
        """The first word may be a tag, but not if it is only a space."""
        return len(words) > 1 and words[0].strip(SPACE) != "" and is_kept(words[1:])

    alike = [is_kept(words) or is_kept_after_tag(words) for words in counted]
    return sum(alike) >= LEAST_ALIKE * len(alike) if alike else None
