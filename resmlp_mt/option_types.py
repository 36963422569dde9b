"""Types of options that are numbers."""

import argparse
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
    numbers: 1e39 is infinite there.
    """
    smallest, largest = (-(2**63), 2**63 - 1) if kind is int else (-3.4e38, 3.4e38)
    least, most = max(least, smallest), min(most, largest)

    def convert(text: str) -> float:
        value = kind(text)
        for holds, bound in (
            (kind is int or math.isfinite(value), "a finite number"),
            (value > above, f"above {above}"),
            (value >= least, f"at least {least}"),
            (value < below, f"below {below}"),
            (value <= most, f"at most {most}"),
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
