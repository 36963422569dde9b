"""The warning about sentences longer than those of the training."""

import logging
from collections.abc import Iterable, Sequence

logger = logging.getLogger(__name__)


def warn(sentences: Iterable[Sequence[int]], longest_trained: int) -> None:
    """Warn if sentences are longer than all source sentences of the training.

    Args:
        sentences: their tokens, with end-of-sentence.
        longest_trained: from the model's configuration; 0 if unknown.
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
