"""Options that fairseq evaluates as Python: what they hold is checked when they are read.

A shell takes their quotes and spaces away, and fairseq evaluates them late, some of them after a
model has been loaded.
"""

import ast
import math
from collections.abc import Mapping
from typing import Any

from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError

DICTIONARIES = {
    "model_overrides": "{'max_source_positions': 256}",
    "optimizer_overrides": "{'weight_decay': 0.01}",
    "epoch2lr": "{'1-3': 0.001}",
    "update2lr": "{'1-1000': 0.001}",
}
"""Options that are dictionaries with texts for keys, each with an example."""

PAIRS = {
    "adam_betas": ("(0.9, 0.98)", 1.0),
    "adamax_betas": ("(0.9, 0.98)", 1.0),
    "lamb_betas": ("(0.9, 0.98)", 1.0),
    "adafactor_eps": ("(1e-30, 1e-3)", math.inf),
}
"""Options that are two numbers of 0 or more, each with an example and what they are below."""

SWITCHES = ("left_pad_source", "left_pad_target")
"""Options that are True or False."""


def check(values: Mapping[str, Any]) -> None:
    """Refuse what is not what fairseq expects.

    Args:
        values: options by their names, as text or as ``fairseq-hydra-train`` has read them; options
            that a command does not have are missing or None.

    Raises:
        UserError: naming the option, with an example.
    """
    for name, example in DICTIONARIES.items():
        found = _value(values.get(name))
        if found is not None and not (isinstance(found, Mapping) and _are_texts(found)):
            raise _refused(name, values, "a dictionary of Python, its texts in quotes", example)
    for name, (example, most) in PAIRS.items():
        found = _value(values.get(name))
        if found is not None and not _is_pair(found, most):
            below = f" below {most:g}" if most < math.inf else ""
            raise _refused(name, values, f"two numbers from 0{below}", example)
    for name in SWITCHES:
        found = _value(values.get(name))
        if found is not None and not isinstance(found, bool | int):
            raise _refused(name, values, "True or False", "True")


def _value(given: Any) -> Any:
    """What a text stands for; the text itself if it is nothing of Python."""
    if not isinstance(given, str):
        return given
    try:
        return ast.literal_eval(given)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return given


def _are_texts(keys: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) for key in keys)


def _is_pair(found: Any, most: float) -> bool:
    return (
        isinstance(found, list | tuple)
        and len(found) == 2
        and all(type(number) in (int, float) and 0 <= number < most for number in found)
    )


def _refused(name: str, values: Mapping[str, Any], what: str, example: str) -> UserError:
    option = flag(name)
    quoted = f'"{example}"' if "'" in example else f"'{example}'"
    return UserError(f"{option} {values[name]} must be {what}: give {option} {quoted}.")
