"""The sentencepiece model behind a dictionary: where it lies, and whether it is the right one."""

import re
from pathlib import Path

import sentencepiece

from resmlp_mt.engine.vocabulary import SPECIAL, Vocabulary
from resmlp_mt.errors import UserError

LEAST_SHARE = 0.98
"""Of the words in a dictionary that must be pieces. All are where the model is the right one, but
for a few that people add, such as marks of domains."""


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
    """``spm.model`` beside the folder of binarised text or in it; None where there is none."""
    beside = Path(*data.parts[:-1], "spm.model") if data.name else data / "spm.model"
    return next((path for path in (beside, data / "spm.model") if path.is_file()), None)


def is_of_subwords(vocabulary: Vocabulary) -> bool:
    """Whether a dictionary is of sentencepiece's pieces, by their sign for a space."""
    return any(symbol.startswith("\u2581") for symbol in vocabulary.symbols)


def check_pieces(
    processor: sentencepiece.SentencePieceProcessor,
    path: Path,
    vocabularies: dict[str, Vocabulary],
) -> None:
    """Refuse a sentencepiece model that did not make the subwords of the training text.

    The dictionary may lack pieces, those of the other language or those that came too seldom.

    Args:
        processor: the model.
        path: where it was read, for the message.
        vocabularies: of the source and the target, by names for the message.

    Raises:
        UserError: if a dictionary has words that are no pieces.
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
