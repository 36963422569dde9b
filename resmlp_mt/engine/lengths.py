"""The warning about sentences longer than those of the training."""

import logging
from collections.abc import Iterable

logger = logging.getLogger(__name__)


def warn(lengths: Iterable[int], longest_trained: int) -> bool:
    """Warn if sentences are longer than all source sentences of the training; returns if so.

    Args:
        lengths: numbers of tokens, with end-of-sentence.
        longest_trained: from the model's configuration; 0 if unknown.
    """
    longer = [length for length in lengths if 0 < longest_trained < length]
    if not longer:
        return False
    is_one = len(longer) == 1
    logger.warning(
        "%s %d tokens, but the longest one of the training had %d: %s may be poor",
        "a line has" if is_one else f"{len(longer)} of the lines have up to",
        max(longer),
        longest_trained,
        "its translation" if is_one else "their translations",
    )
    return True
