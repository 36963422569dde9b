"""Splits text into the subwords of a sentencepiece model, and joins them."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sentencepiece

from resmlp_mt.engine.inputs import check_type
from resmlp_mt.engine.vocabulary import SPECIAL, UNK, Vocabulary
from resmlp_mt.errors import refused
from resmlp_mt.files import check_is_whole
from resmlp_mt.text import BYTE, SURROGATE, UNSPACED, join_pieces, normalize

if TYPE_CHECKING:
    from resmlp_mt.engine.model_folder import TranslationModel

SPACE = "\u2581"
"""sentencepiece's sign for a space."""

MOST_UNKNOWN = 4
"""Unknown words that say nothing, however few words there are: names, or another script."""

SEPARATOR = re.compile(f"(?<=[{UNSPACED}])\u200b|\u200b(?=[{UNSPACED}])")
"""A zero-width space beside a letter of a script without spaces, such as Thai or Khmer."""

OTHER_SPACE = re.compile(r"[^\S ]")
"""White space other than the plain space."""


def read_sentencepiece(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Load a sentencepiece model.

    Raises:
        UserError: if the file is missing or is not a sentencepiece model.
    """

    def sentence(error: Exception) -> str:
        why = f" ({error.strerror})" if isinstance(error, OSError) else ""
        return f"{path} cannot be read as a sentencepiece model{why}."

    with refused(sentence, OSError, RuntimeError):
        check_is_whole(path)
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(path.read_bytes())  # a path need not be UTF-8
        return processor


def find_sentencepiece(data: Path) -> Path | None:
    """``spm.model`` beside the folder of binarised text or in it; None if there is none."""
    return next((f for f in (beside(data, "spm.model"), data / "spm.model") if f.is_file()), None)


def beside(data: Path, name: str) -> Path:
    """The file of a name in the folder above ``data``, which may be ``.`` or ``..``."""
    folder = Path(os.path.abspath(data)) if data.name in ("", "..") else data
    return folder.parent / name


def pieces_of(
    line: str,
    words: Vocabulary,
    processor: sentencepiece.SentencePieceProcessor | None,
    normalizes: bool,
    *,
    keeps_tags: bool = False,
) -> list[str]:
    """The subwords of a line, as the training text had them; a line of white space has none.

    Args:
        words: the dictionary of the line's language.
        processor: the sentencepiece model; without one, words are looked up as they are.
        normalizes: whether the line is normalised before the model splits it.
        keeps_tags: whether tags with no text after them are subwords, as a translation may begin
            with them. Of a source of tags alone, a model invents a translation.

    Raises:
        TypeError: if the line is not a text.
    """
    check_type("line", line, str)
    if not line.strip():  # else a model that keeps spaces invents a translation
        return []
    if processor is None:
        return split_words(line, words)
    tags, rest = split_tags(line, words, processor, normalizes)
    pieces = split_pieces(rest, processor, normalizes=False)
    return [*tags, *pieces] if pieces or keeps_tags else []


def split_tags(
    line: str,
    words: Vocabulary,
    processor: sentencepiece.SentencePieceProcessor,
    normalizes: bool,
) -> tuple[list[str], str]:
    """The tags at the beginning of a line, and the rest of it, normalised if ``normalizes``.

    A tag may have invisible signs beside it; if the line is normalised, they do not belong to it.
    """
    tags = leading_tags(line, words, processor)
    if normalizes:
        clean = normalized(line, processor)
        clean_tags = tags if clean == line else leading_tags(clean, words, processor)
        if len(clean_tags) < len(tags):
            return tags, normalized(_without(tags, line), processor)
        tags, line = clean_tags, clean
    return tags, _without(tags, line)


def _without(tags: Sequence[str], line: str) -> str:
    return "".join(line.split(maxsplit=len(tags))[len(tags) :]) if tags else line


def leading_tags(
    line: str, words: Vocabulary, processor: sentencepiece.SentencePieceProcessor
) -> list[str]:
    """The words at the beginning of a line that no text gives, such as ``<2de>`` for a language.

    They were put before the pieces of a sentence: the dictionary has them, and the model would
    split them, or they are tags of the dictionary.
    """
    found = []
    for word in line.split():
        if word in words.tags:
            found.append(word)
            continue
        known = word in words.indices and word not in SPECIAL
        number = processor.piece_to_id(word) if known else 0
        is_piece = number != processor.unk_id() and not processor.is_control(number)
        # an unknown character is a word of the dictionary, too: it is left as it is
        if not known or is_piece or word in processor.encode(word, out_type=str):
            break
        found.append(word)
    return found


def are_unknown(sentences: Iterable[Sequence[int]], indices: Mapping[str, int]) -> bool:
    """Whether most tokens of some sentences, before the end of each, are unknown.

    ``indices`` are the tokens of the words in the dictionary.
    """
    # sentencepiece puts a space before a word that it does not know
    space = indices.get(SPACE)
    words = [token for tokens in sentences for token in tokens[:-1] if token != space]
    return words.count(UNK) > max(MOST_UNKNOWN, len(words) / 2)


def is_unknown(line: str, tokens: Sequence[int], model: "TranslationModel") -> bool:
    """Whether a model knows no word of a line, so that every translation of it is made up."""
    if UNK not in tokens:
        return False
    words, processor = model.source, model.sentencepiece
    tags = leading_tags(line, words, processor) if processor is not None else []
    return set(tokens[len(tags) : -1]) <= {UNK, words.indices.get(SPACE, UNK)}


def split_words(line: str, vocabulary: Vocabulary) -> list[str]:
    """The words of a line; those that the dictionary lacks are normalised if it has the result.

    A whole line is not normalised: text that was split into pieces may hold sentencepiece's sign
    for a space.
    """
    words: list[str] = []
    for word in line.split():
        found = [word] if word in vocabulary.indices else normalize(word).split()
        words += found if all(other in vocabulary.indices for other in found) else [word]
    return words


def split_pieces(
    line: str, processor: sentencepiece.SentencePieceProcessor, normalizes: bool
) -> list[str]:
    """The pieces of a line, which is normalised first if ``normalizes``."""
    text = normalized(line, processor) if normalizes else SURROGATE.sub("\ufffd", line)
    pieces = processor.encode(text, out_type=str)
    return " ".join(pieces).split()  # pieces may have characters that fairseq takes for spaces


def normalized(line: str, processor: sentencepiece.SentencePieceProcessor) -> str:
    """A line as :func:`normalize` gives it, but with its spaces as the model has them.

    In Khmer, Thai and scripts like them, U+200B separates words, and the usual rules of
    sentencepiece make a space of it. With the rule ``identity``, the model has pieces with
    white space other than the plain space, where fairseq-preprocess then divided them.
    """
    if SEPARATOR.search(line) and _is_space("\u200b", processor):
        line = SEPARATOR.sub(" ", line)
    others = set(OTHER_SPACE.findall(line))
    kept = "".join(c for c in others if not _is_space(c, processor) and _is_known(c, processor))
    if not kept:
        return normalize(line)
    # the bars keep the spaces at both ends of a part
    return re.sub(f"[^{kept}]+", lambda part: normalize(f"|{part[0]}|")[1:-1], line).strip(" ")


def _is_space(character: str, processor: sentencepiece.SentencePieceProcessor) -> bool:
    return bool(processor.normalize(f"a{character}a") == processor.normalize("a a"))


def _is_known(character: str, processor: sentencepiece.SentencePieceProcessor) -> bool:
    """Whether the model has pieces with a character; usual rules delete most control characters."""
    is_deleted = processor.normalize(f"a{character}a") == processor.normalize("aa")
    pieces = processor.encode(character)
    return not is_deleted and not any(
        processor.is_unknown(piece) or processor.is_byte(piece) for piece in pieces
    )


def decode_pieces(processor: sentencepiece.SentencePieceProcessor, pieces: Sequence[str]) -> str:
    """The text of pieces as ``spm_decode`` gives it; also of another model, for the other language.

    sentencepiece itself would leave the marks and bytes of pieces that it does not know.
    """
    unknown = processor.unk_id()
    for piece, index in zip(pieces, processor.piece_to_id([*pieces]), strict=True):
        if index == unknown and ("\u2581" in piece or BYTE.fullmatch(piece)):
            return join_pieces(pieces).removeprefix(" ")
    return str(processor.decode([*pieces]))
