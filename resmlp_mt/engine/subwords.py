"""The sentencepiece model of a dictionary: finds it, and checks that it is the right one."""

import re
from pathlib import Path

import sentencepiece

from resmlp_mt.engine.vocabulary import SPECIAL, Vocabulary
from resmlp_mt.errors import UserError

LEAST_SHARE = 0.98
"""Share of the words in a dictionary that must be pieces. If the model is the right one, all are
pieces, except for a few that people add, such as domain tags."""


def read_sentencepiece(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Load a sentencepiece model.

    Raises:
        UserError: if the file is missing or is not a sentencepiece model.
    """
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as a sentencepiece model.") from error


def find_sentencepiece(data: Path) -> Path | None:
    """``spm.model`` beside the folder of binarised text or in it; None if there is none."""
    beside = Path(*data.parts[:-1], "spm.model") if data.name else data / "spm.model"
    return next((path for path in (beside, data / "spm.model") if path.is_file()), None)


def is_of_subwords(vocabulary: Vocabulary) -> bool:
    """Whether a dictionary has sentencepiece's pieces, judged by their sign for a space."""
    return any(symbol.startswith("\u2581") for symbol in vocabulary.symbols)


def check_pieces(
    processor: sentencepiece.SentencePieceProcessor,
    path: Path,
    vocabularies: dict[str, Vocabulary],
) -> None:
    """Refuse a sentencepiece model that did not make the subwords of the training text.

    The dictionary may lack pieces: those of the other language, and rare ones.

    Args:
        processor: the model.
        path: its file, for the message.
        vocabularies: vocabularies of source and target, by names for the message.

    Raises:
        UserError: if a dictionary has words that are not pieces.
    """
    pieces = {processor.id_to_piece(index) for index in range(len(processor))}
    for name, vocabulary in vocabularies.items():
        words = {
            word
            for word in vocabulary.symbols
            if word not in SPECIAL and not re.fullmatch(r"madeupword\d+", word)
        }
        share = len(words & pieces) / len(words) if words else 1.0
        if share < LEAST_SHARE:
            raise UserError(
                f"{path} is not the sentencepiece model of this translation model: {share:.0%} of "
                f"the words in {name} are its pieces; give the one that made the training text."
            )
