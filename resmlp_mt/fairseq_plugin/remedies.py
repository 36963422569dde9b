"""Wraps functions of fairseq in remedies."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

Original = Callable[..., Any]
"""The function of fairseq that a remedy receives as its first argument."""


def wrap(owner: Any, name: str, wrapper: Callable[..., Any], *, before: bool = False) -> None:
    """Replace ``owner.name`` by ``wrapper``, which receives the original as its first argument.

    A class method stays one: its class is the second argument. A second call changes nothing.

    Args:
        before: call ``wrapper`` with the arguments alone, and the original after it.
    """
    found = inspect.getattr_static(owner, name)
    original = found.__func__ if isinstance(found, classmethod) else getattr(owner, name)
    if wrapper in getattr(original, "remedies", ()):
        return

    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        if not before:
            return wrapper(original, *args, **kwargs)
        wrapper(*args, **kwargs)
        return original(*args, **kwargs)

    replacement.remedies = (*getattr(original, "remedies", ()), wrapper)  # type: ignore[attr-defined]
    setattr(
        owner, name, classmethod(replacement) if isinstance(found, classmethod) else replacement
    )
