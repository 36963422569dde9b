"""Tags that were put before the pieces of training sentences, such as ``<2de>`` for a language."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from resmlp_mt.engine.subwords import SPACE, leading_tags
from resmlp_mt.engine.vocabulary import SPECIAL, Vocabulary

logger = logging.getLogger(__name__)


def tags_before(
    sentences: Sequence[Sequence[str]], processor: sentencepiece.SentencePieceProcessor
) -> frozenset[str]:
    """Pieces, such as user-defined symbols, that most sentences begin with as no text does.

    They were put before the other pieces: the model would begin the sentence with a space.

    Args:
        sentences: the words of each, as binarised.
    """

    def is_before(word: str) -> bool:
        if SPACE in word or word in SPECIAL or processor.is_unknown(processor.piece_to_id(word)):
            return False
        return "".join(processor.encode(word, out_type=str)).startswith(SPACE)

    runs = [list(itertools.takewhile(is_before, words)) for words in sentences]
    is_usual = 2 * sum(map(bool, runs)) > len(runs)
    return frozenset(itertools.chain(*runs)) if is_usual else frozenset()


def warn_of_tags(
    data: Path,
    sentences: Sequence[Sequence[str]],
    words: Vocabulary,
    processor: sentencepiece.SentencePieceProcessor,
) -> None:
    """Warn of source sentences most of which begin with a tag, without which none is translated."""
    firsts = [tags[0] for s in sentences if (tags := leading_tags(" ".join(s), words, processor))]
    if len(firsts) > len(sentences) / 2:
        logger.warning(
            "the sentences in %s begin with %s: begin every line to translate with it.",
            data, " or ".join(sorted(set(firsts))),
        )  # fmt: skip
