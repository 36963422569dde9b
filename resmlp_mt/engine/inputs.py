"""Checks of what Python code gives to a translator.

Only the standard library is imported here, because the options of the search use it.
"""

import numbers
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import TypeVar

from resmlp_mt.errors import UserError
from resmlp_mt.machine import MOST_THREADS

Item = TypeVar("Item")


def texts(values: Iterable[Item], name: str, *, optional: bool = False) -> Iterator[Item]:
    """The items of any iterable of texts, each checked when its turn comes.

    Args:
        name: of the argument, for the message.
        optional: whether items may be None.

    Raises:
        TypeError: at once if ``values`` is a single text, or has no order; later if an item is not
            a text.
    """
    if isinstance(values, str | bytes | bytearray):
        kind = type(values).__name__
        raise TypeError(f"{name}: expected a list of str, but got a {kind}: write [text].")
    if isinstance(values, Mapping | Set) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected a list of str, but got a {type(values).__name__}.")
    return _checked(values, name, optional)


def _checked(values: Iterable[Item], name: str, optional: bool) -> Iterator[Item]:
    for number, item in enumerate(values):
        if not isinstance(item, str) and not (optional and item is None):
            raise TypeError(
                f"{name}: expected a list of str, but item {number} is {type(item).__name__}."
            )
        yield item


def check_counts(**counts: int | None) -> None:
    """Refuse numbers that are not whole or below 1, and too many threads; None is allowed.

    Raises:
        TypeError: naming the one that is not a whole number.
        UserError: naming the one that is too small or too large.
    """
    for name, count in counts.items():
        if count is None:
            continue
        check_type(name, count, int)
        if count < 1:
            raise UserError(f"{name} must be at least 1, but is {count}.")
        if name in ("workers", "threads") and count > MOST_THREADS:
            raise UserError(f"{name} must be at most {MOST_THREADS}, but is {count}.")


def check_between(name: str, value: int, least: int, most: int) -> None:
    """Refuse a number that is not whole or not in these bounds.

    Raises:
        TypeError: if it is not a whole number.
        UserError: if it is too small or too large.
    """
    check_type(name, value, int)
    if not least <= value <= most:
        raise UserError(f"{name} must be between {least} and {most}, but is {value}.")


def check_type(name: str, value: object, kind: type) -> None:
    """Refuse a value of an option that is not of its type; whole numbers are numbers too.

    Values of numpy are of the type that they stand for.

    Raises:
        TypeError: naming the option.
    """
    if kind is bool and hasattr(value, "dtype") and value.dtype == bool:
        return
    allowed = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
    if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
        expected = {int: "a whole number", float: "a number", bool: "True or False"}
        raise TypeError(
            f"{name} must be {expected.get(kind, kind.__name__)}, but is {value!r:.80}."
        )
