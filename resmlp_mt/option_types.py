"""Types of options that are numbers."""

import argparse
import array
import math
from collections.abc import Callable
from typing import Any

from resmlp_mt.machine import MOST_THREADS


def number(
    kind: type[int] | type[float],
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> Callable[[str], Any]:
    """The type of an option that is a number within these bounds.

    A whole number has at most 64 bits. Another number has to be finite in the 32 bits of a model's
    numbers too: 1e39 is infinite there.
    """
    if kind is int:
        least, most = max(least, -(2**63)), min(most, 2**63 - 1)

    def convert(text: str) -> float:
        value = kind(text)
        is_whole = isinstance(value, int)  # which may be too large for a float
        for holds, bound in (
            (is_whole or math.isfinite(value), "a finite number"),
            (value >= least, f"at least {least}"),
            (value > above, f"above {above}"),
            (value <= most, f"at most {most}"),
            (value < below, f"below {below}"),
            (is_whole or math.isfinite(array.array("f", [value])[0]), "a finite number"),
        ):
            if not holds:
                raise argparse.ArgumentTypeError(f"must be {bound}, but is {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names it in its message
    return convert


FINITE = number(float)
SOME = number(float, above=0)
POSITIVE = number(int, least=1)
NOT_NEGATIVE = number(int, least=0)
SHARE = number(float, above=0, most=1)
PROBABILITY = number(float, least=0, most=1)
PROCESSES = number(int, least=1, most=MOST_THREADS)
"""The type of a number of threads or processes."""
