"""The beginnings of translations that a caller gives."""

from collections.abc import Callable, Iterable

from resmlp_mt.engine.inputs import texts
from resmlp_mt.errors import UserError


def prefix_tokens(
    prefixes: Iterable[str | None],
    count: int,
    most: int,
    encode: Callable[[str], list[int]],
) -> list[list[int]]:
    """The tokens that each translation begins with.

    Args:
        prefixes: text for each line, None for no prefix.
        count: number of lines.
        most: largest number of tokens of a translation.
        encode: the tokens of a text, without end-of-sentence.

    Raises:
        TypeError: if ``prefixes`` is a single text, or has anything but texts.
        UserError: if there are not as many prefixes as lines, or one is too long.
    """
    given = list(texts(prefixes, "target_prefix", optional=True))
    if len(given) != count:
        raise UserError(
            f"{count} lines have {len(given)} prefixes: give a prefix or None for each line."
        )
    found = [encode(text or "") for text in given]
    for tokens, text in zip(found, given, strict=True):
        if len(tokens) > most:
            raise UserError(
                f"the prefix '{(text or '')[:40]}' has {len(tokens)} tokens, but a translation "
                f"has at most {most}: shorten it."
            )
    return found
