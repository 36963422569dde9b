"""The beginnings of translations that a caller gives."""

from collections.abc import Callable, Iterable, Sequence

from resmlp_mt.engine.inputs import texts
from resmlp_mt.errors import UserError


def prefix_tokens(
    prefixes: Iterable[str | None],
    limits: Sequence[int],
    encode: Callable[[str], list[int]],
) -> list[list[int]]:
    """The tokens that each translation begins with.

    Args:
        prefixes: text for each line, None for no prefix.
        limits: the largest number of tokens of each line's translation.
        encode: the tokens of a text, without end-of-sentence.

    Raises:
        TypeError: if ``prefixes`` is a single text, or has anything but texts.
        UserError: if there are not as many prefixes as lines, or one is too long.
    """
    given = list(texts(prefixes, "target_prefix", optional=True))
    if len(given) != len(limits):
        raise UserError(
            f"{len(limits)} lines have {len(given)} prefixes: give a prefix or None for each line."
        )
    found = [encode(text or "") for text in given]
    for tokens, text, most in zip(found, given, limits, strict=True):
        if len(tokens) > most:
            raise UserError(
                f"the prefix '{(text or '')[:40]}' has {len(tokens)} tokens, but the translation "
                f"of its line has at most {most}: shorten it."
            )
    return found
