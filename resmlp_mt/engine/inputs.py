"""Checks of what Python code gives to a translator."""

import argparse
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from resmlp_mt.errors import UserError, refused
from resmlp_mt.option_types import POSITIVE, PROCESSES, number

Item = TypeVar("Item")
NUMBERS: dict[type, Any] = {int: numbers.Integral, float: numbers.Real}


def texts(values: Iterable[Item], name: str, *, optional: bool = False) -> Iterator[Item]:
    """The items of any iterable of texts, each checked when its turn comes.

    Args:
        name: of the argument, for the message.
        optional: whether items may be None.

    Raises:
        TypeError: at once if ``values`` is a single text, a table, or has no order; later if an
            item is not a text.
    """
    if isinstance(values, str | bytes | bytearray):
        kind = type(values).__name__
        raise TypeError(f"{name}: expected a list of str, but got a {kind}: write [text].")
    is_table = hasattr(values, "columns")  # whose items are the names of its columns
    has_order = not isinstance(values, Mapping | set | frozenset)
    if is_table or not has_order or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected a list of str, but got a {type(values).__name__}.")
    return _checked(values, name, optional)


def _checked(values: Iterable[Item], name: str, optional: bool) -> Iterator[Item]:
    for place, item in enumerate(values):
        if not isinstance(item, str) and not (optional and item is None):
            raise TypeError(
                f"{name}: expected a list of str, but item {place} is {type(item).__name__}."
            )
        yield item


def check_counts(*optional: str, **counts: int | None) -> None:
    """Refuse numbers that are not whole or below 1, and too many threads.

    Args:
        optional: the names of those that may be None.

    Raises:
        TypeError: naming the one that is not a whole number.
        UserError: naming the one that is too small or too large.
    """
    for name, count in counts.items():
        if count is None and name in optional:
            continue
        bounds = PROCESSES if name in ("workers", "threads") else POSITIVE
        check_number(name, check_type(name, count, int), bounds)


def check_between(name: str, value: int, least: int, most: int) -> None:
    """Refuse anything but a whole number within these bounds.

    Raises:
        TypeError: if it is not a whole number.
        UserError: if it is too small or too large.
    """
    check_number(name, check_type(name, value, int), number(int, least=least, most=most))


def check_number(name: str, value: Any, bounds: Callable[[Any], Any]) -> None:
    """Refuse a number outside of bounds, which are the type of an option of a command.

    Raises:
        UserError: if it is too small or too large.
    """
    with refused(lambda error: f"{name} {error}.", argparse.ArgumentTypeError):
        bounds(value)


def check_type(name: str, value: Any, kind: type[Any]) -> Any:
    """A value of an option, which must be of its type; whole numbers are numbers too.

    Values of numpy are of the type that they stand for, and become it: theirs overflow.

    Raises:
        TypeError: naming the option.
    """
    if kind is bool and hasattr(value, "dtype") and value.dtype == bool:
        return bool(value)
    if not isinstance(value, NUMBERS.get(kind, kind)) or (
        kind is not bool and isinstance(value, bool)
    ):
        expected = {int: "a whole number", float: "a number", bool: "True or False"}
        raise TypeError(
            f"{name} must be {expected.get(kind, kind.__name__)}, but is {value!r:.80}."
        )
    return kind(value) if kind in NUMBERS else value


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
    given = [text or "" for text in texts(prefixes, "target_prefix", optional=True)]
    if len(given) != len(limits):
        raise UserError(
            f"{len(limits)} lines have {len(given)} prefixes: give a prefix or None for each line."
        )
    found = [encode(text) for text in given]
    for tokens, text, most in zip(found, given, limits, strict=True):
        if len(tokens) > most:
            raise UserError(
                f"the prefix '{text[:40]}' has {len(tokens)} tokens, but the translation "
                f"of its line has at most {most}: shorten it."
            )
    return found
