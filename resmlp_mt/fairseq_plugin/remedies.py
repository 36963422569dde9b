"""Wraps functions of fairseq in remedies."""

import functools
from collections.abc import Callable
from typing import Any


def wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace ``owner.name`` by ``wrapper``, which receives the original as its first argument.

    A second call changes nothing.
    """
    original = getattr(owner, name)
    if wrapper in getattr(original, "remedies", ()):
        return

    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    replacement.remedies = (*getattr(original, "remedies", ()), wrapper)  # type: ignore[attr-defined]
    setattr(owner, name, replacement)
