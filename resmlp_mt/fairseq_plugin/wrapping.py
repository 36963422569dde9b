"""Wraps functions of fairseq in remedies, and finds the modules of its commands."""

import functools
import inspect
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

Original = Callable[..., Any]
"""The function of fairseq that a remedy receives as its first argument."""


Remedy = TypeVar("Remedy", bound=Callable[..., Any])


def remedy(owner: Any, name: str, *, before: bool = False) -> Callable[[Remedy], Remedy]:
    """Decorates a function that mends ``owner.name``, once :func:`mend` is called with its module.

    Args:
        owner: a class or a module, the name of a command for its modules, or several of these.
        before: see :func:`wrap`.
    """

    def mark(function: Remedy) -> Remedy:
        places = owner if isinstance(owner, tuple) else (owner,)
        marked: Any = function
        marked.mends = [
            *getattr(function, "mends", ()),
            *((place, name, before) for place in places),
        ]
        return function

    return mark


def mend(*modules: ModuleType) -> None:
    """Apply all remedies of these modules, in their order; a second call changes nothing."""
    for module in modules:
        for function in list(vars(module).values()):
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                for place, name, before in getattr(function, "mends", ()):
                    for owner in command_modules(place) if isinstance(place, str) else (place,):
                        wrap(owner, name, function, before=before)


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

    # fairseq asks for the arguments of some functions, and inspect.getfullargspec sees no wrapper
    replacement.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    replacement.remedies = (*getattr(original, "remedies", ()), wrapper)  # type: ignore[attr-defined]
    setattr(
        owner, name, classmethod(replacement) if isinstance(found, classmethod) else replacement
    )


def is_command(spec: ModuleSpec | None, name: str = "") -> bool:
    """Whether a specification belongs to a command of fairseq, or to ``fairseq_cli.NAME``.

    With ``python -m``, too, its name is that of the file.
    """
    return spec is not None and spec.name.startswith(f"fairseq_cli.{name}")


def command_modules(name: str) -> list[Any]:
    """The modules that hold ``fairseq_cli.NAME``: imported, run with ``python -m``, or both."""
    modules = [sys.modules.get(place) for place in ("__main__", f"fairseq_cli.{name}")]
    return [module for module in modules if is_command(getattr(module, "__spec__", None), name)]
