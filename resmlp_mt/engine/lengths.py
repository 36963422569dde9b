"""Sentences that are too long for a model, or longer than its training sentences."""

import logging
from collections.abc import Iterable

from resmlp_mt.errors import UserError

logger = logging.getLogger(__name__)


def limit(max_source_positions: int, max_tokens: int | None) -> tuple[int, str]:
    """The most tokens of a sentence, and what to do about a longer one."""
    if max_tokens is not None and max_tokens < max_source_positions:
        return max_tokens, "raise --max-tokens"
    return max_source_positions, "train with a larger --max-source-positions"


def too_long(length: int, most: int, remedy: str) -> str:
    """What is said of a sentence that is too long."""
    return (
        f"has {length} tokens, but at most {most} are allowed: its translation is left empty; "
        f"shorten it, or {remedy}"
    )


def check(text: str, length: int, most: int) -> None:
    """Refuse a text that is too long.

    Raises:
        UserError: with its beginning.
    """
    if length > most:
        raise UserError(
            f"the line that begins with '{text[:40]}' has {length} tokens, but at most {most} are "
            "allowed: shorten it."
        )


def longer(lengths: Iterable[int], longest_trained: int) -> list[int]:
    """The lengths above that of all source sentences of the training.

    Args:
        lengths: numbers of tokens, with end-of-sentence.
        longest_trained: from the model's configuration; 0 if unknown.
    """
    return [length for length in lengths if 0 < longest_trained < length]


def warn(count: int, most: int, longest_trained: int) -> None:
    """Warn of ``count`` lines that are :func:`longer`, with up to ``most`` tokens."""
    is_one = count == 1
    logger.warning(
        "%s %d tokens, but the longest one of the training had %d: %s may be poor",
        "a line has" if is_one else f"{count} of the lines have up to",
        most,
        longest_trained,
        "its translation" if is_one else "their translations",
    )
