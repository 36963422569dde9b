"""What a search is told and what it finds, for every kind of model.

The standard library alone is imported here, so that ``--help`` answers at once.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from resmlp_mt.errors import UserError

DTYPES = ("float32", "bfloat16", "int8")
"""What weights and linear layers may be; everything else stays in float32 or bfloat16."""

MOST_LENPEN = 10  # of the lengths that models allow, this power is still a float32


@dataclass(frozen=True)
class SearchOptions:
    """Options of the search under fairseq's names; see ``fairseq-generate --help``.

    Raises:
        UserError: naming the option, what was expected and what to do.
    """

    beam: int = 5
    lenpen: float = 1.0
    unnormalized: bool = False
    unkpen: float = 0.0
    temperature: float = 1.0
    min_len: int = 1
    max_len_a: float = 0.0
    max_len_b: int = 200

    def __post_init__(self) -> None:
        for name, least in (("beam", 1), ("min_len", 0), ("max_len_b", 0), ("max_len_a", 0.0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                option = "--" + name.replace("_", "-")
                raise UserError(f"{option} must be at least {least}, but is {value}.")
        for name in ("lenpen", "unkpen"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"--{name} must be a number, but is {getattr(self, name)}.")
        if not abs(self.lenpen) <= MOST_LENPEN:
            raise UserError(
                f"--lenpen must be between -{MOST_LENPEN} and {MOST_LENPEN}, but is {self.lenpen}."
            )
        if not 0 < self.temperature < math.inf:
            raise UserError(f"--temperature must be above 0, but is {self.temperature}.")

    def max_len(self, source_length: int, max_target_positions: int) -> int:
        """The most tokens of a translation, without end-of-sentence.

        It counts the sentence's own tokens, where fairseq counts the padding of its batch too.

        Raises:
            UserError: if it is below ``min_len``.
        """
        longest = max_target_positions - 1
        if self.max_len_a * source_length < longest:  # else it may be too large for an integer
            own = int(self.max_len_a * source_length + min(self.max_len_b, longest))
            longest = min(own, longest)
        if self.min_len > longest:
            raise UserError(
                f"--min-len {self.min_len} is above the longest translation, {longest} tokens: "
                f"lower it, or raise --max-len-b (the model allows {max_target_positions - 1})."
            )
        return longest


class Hypothesis(NamedTuple):
    """A finished translation.

    Tokens end in end-of-sentence. Scores are natural logarithms: ``score`` is the sum of
    ``positional_scores``, divided by the length to the power of ``lenpen`` unless unnormalized.
    """

    tokens: list[int]
    score: float
    positional_scores: list[float]


class SpecialTokens(NamedTuple):
    """Indices in the target vocabulary."""

    pad: int
    eos: int
    unk: int
