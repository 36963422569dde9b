"""Sentences longer than those of the training."""

import logging
from collections.abc import Iterable, Sequence

logger = logging.getLogger(__name__)


def warn(sentences: Iterable[Sequence[int]], longest_trained: int) -> None:
    """Say how many sentences are longer than all source sentences of the training.

    Args:
        sentences: of tokens, with end-of-sentence.
        longest_trained: of the model's configuration; 0 if it is not known.
    """
    longer = [len(tokens) for tokens in sentences if 0 < longest_trained < len(tokens)]
    if longer:
        logger.warning(
            "%d of the lines have up to %d tokens, but the longest one of the training had "
            "%d: their translations may be poor",
            len(longer),
            max(longer),
            longest_trained,
        )
