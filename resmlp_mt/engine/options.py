"""Options and results of a search, for every kind of model.

Only the standard library is imported here, so that ``--help`` answers at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self, cast

from resmlp_mt.command_line import flag, option, switch
from resmlp_mt.engine.inputs import check_number, check_type
from resmlp_mt.engine.vocabulary import EOS, PAD, UNK
from resmlp_mt.errors import UserError
from resmlp_mt.option_types import FINITE, NOT_NEGATIVE, POSITIVE, SOME, number

SHORTEST = 2
"""Tokens of the shortest sentence that is translated, with end-of-sentence."""

DTYPES = ("float32", "bfloat16", "int8")
"""What embeddings and linear layers may be; everything else stays in float32 or bfloat16."""

OF_PYTORCH = (
    "no_repeat_ngram_size", "repetition_penalty", "coverage_penalty", "disable_unk", "sampling",
)  # fmt: skip
WHOLE = number(int)
LENPEN = number(float, least=-10, most=10)
"""The lengths that models allow, to this power, still fit into a float32."""
NOT_BELOW_0 = number(float, least=0)


@dataclass(frozen=True)
class SearchOptions:
    """Search.

    The options have fairseq's names where it has them, else CTranslate2's.

    Attributes:
        repetition_penalty: before the softmax, divides positive scores of earlier tokens and
            multiplies negative ones (CTranslate2).
        coverage_penalty: beta of Wu et al. 2016, equation 14: after the search, hypotheses are
            ranked again, and those that leave out parts of the source lose (CTranslate2).

    Raises:
        TypeError: if an option is of another type.
        UserError: naming the option, what was expected and what to do.
    """

    beam: int = option(5, type=POSITIVE, help="hypotheses")
    lenpen: float = option(
        1.0, type=LENPEN,
        help="power of the length that divides scores: larger, longer output",
    )  # fmt: skip
    unnormalized: bool = switch("compare sums of scores")
    unkpen: float = option(0.0, type=FINITE, help="penalty of an unknown word")
    temperature: float = option(1.0, type=SOME, help="divisor of the scores before the softmax")
    min_len: int = option(1, type=NOT_NEGATIVE, help="least number of tokens of a translation")
    max_len_a: float = option(
        0.0, type=NOT_BELOW_0, help="a in the largest number of tokens, a * source tokens + b"
    )
    max_len_b: int = option(200, type=NOT_NEGATIVE, help="b in the largest number of tokens")
    no_repeat_ngram_size: int = option(
        0, type=NOT_NEGATIVE, help="no n-gram of this size occurs twice, 0 allows all"
    )
    repetition_penalty: float = option(
        1.0, type=SOME, help="divisor of the scores of earlier tokens"
    )
    coverage_penalty: float = option(
        0.0, type=NOT_BELOW_0, help="penalty for leaving out parts of the source"
    )
    disable_unk: bool = switch("no unknown words")
    sampling: bool = switch(
        "draw each translation instead of searching for the best; --beam has no effect"
    )
    sampling_topk: int = option(
        -1, type=WHOLE, metavar="K", help="draw among the K best tokens, -1 for all"
    )
    sampling_topp: float = option(
        -1.0, type=FINITE, metavar="P",
        help="draw among the best tokens up to probability P, -1 for all",
    )  # fmt: skip
    seed: int = option(1, type=WHOLE, help="seed of the draws")

    def __post_init__(self) -> None:
        for field in fields(SearchOptions):  # a command may add options
            value = check_type(field.name, getattr(self, field.name), cast(type, field.type))
            check_number(flag(field.name), value, field.metadata["keywords"].get("type", bool))
            object.__setattr__(self, field.name, value)
        if self.sampling_topk != -1 and self.sampling_topk < 1:
            raise UserError(f"--sampling-topk must be above 0, but is {self.sampling_topk}.")
        if self.sampling_topp != -1 and not 0 < self.sampling_topp <= 1:
            raise UserError(f"--sampling-topp must be in (0, 1], but is {self.sampling_topp}.")
        if not self.sampling and (self.sampling_topk != -1 or self.sampling_topp != -1):
            raise UserError("--sampling-topk and --sampling-topp belong to --sampling: add it.")

    @classmethod
    def of(cls, options: Self) -> Self:
        """The options of the search alone, from those of a command."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})

    def changed(self, **changes: Any) -> Self:
        """A copy with the changes that are not None; itself without any, to check nothing again."""
        given = {name: new for name, new in changes.items() if new is not None}
        return replace(self, **given) if given else self

    def of_call(
        self,
        beam_size: int | None,
        num_hypotheses: int | None,
        sampling_topk: int | None,
        sampling_topp: float | None,
        **changes: Any,
    ) -> Self:
        """The options of a call with CTranslate2's arguments; what is None stays as it is.

        Raises:
            UserError: if they do not fit each other.
        """
        is_search = sampling_topk == 1
        is_asked = not is_search and (sampling_topk, sampling_topp) != (None, None)
        is_sampling = is_asked or (self.sampling and not is_search)
        if is_sampling and beam_size not in (None, 1):
            raise UserError(
                f"beam_size {beam_size} is for a search, and this call draws: leave it out, and "
                "give the number of draws as num_hypotheses."
            )
        draws = num_hypotheses or (1 if is_asked else beam_size)
        return self.changed(
            beam=draws if is_sampling else beam_size,
            sampling=None if is_sampling == self.sampling else is_sampling,
            sampling_topk=-1 if is_search or sampling_topk == 0 else sampling_topk,
            sampling_topp=-1.0 if is_search else sampling_topp,
            **changes,
        )

    @property
    def need_the_past(self) -> bool:
        """Whether a step depends on the tokens of earlier steps."""
        return bool(self.no_repeat_ngram_size) or self.repetition_penalty != 1.0

    @property
    def of_pytorch(self) -> list[str]:
        """The options given that the search over ONNX graphs lacks."""
        given = [name for name in OF_PYTORCH if getattr(self, name) != getattr(SearchOptions, name)]
        return [flag(name) for name in given]

    def max_len(self, source_length: int, max_target_positions: int) -> int:
        """The most tokens of a translation, without end-of-sentence.

        It counts the sentence's own tokens, where fairseq counts the padding of its batch too.

        Raises:
            UserError: if it is below ``min_len``.
        """
        longest = max_target_positions - 1
        if self.max_len_a * source_length < longest:  # otherwise it may overflow an integer
            own = int(self.max_len_a * source_length + min(self.max_len_b, longest))
            longest = min(own, longest)
        if self.min_len > longest:
            raise UserError(
                f"--min-len {self.min_len} is above the longest translation, {longest} tokens: "
                f"lower it, or raise --max-len-b (the model allows {max_target_positions - 1})."
            )
        return longest

    def check_beam(self, words: int, what: str = "vocabulary", remedy: str = "") -> None:
        """Refuse a beam whose 2 * beam candidates are more than the words, pad and unk left out.

        Args:
            words: that a sentence may have.
            what: has these words.
            remedy: what else to do, for the message.

        Raises:
            UserError: naming the option.
        """
        if 2 * self.beam > words - 2 and not self.sampling:
            raise UserError(
                f"--beam {self.beam} is too large for a {what} of {words} words: choose at most "
                f"{words // 2 - 1}{remedy}."
            )

    def restrict(self, scores: Any, position: int, at_limit: Sequence[int]) -> None:
        """Forbid tokens, and subtract ``unkpen``, in place.

        Args:
            scores: (rows, hypotheses, words), a tensor of PyTorch or an array of numpy.
            position: position of the tokens that are chosen.
            at_limit: rows that end here, even below ``min_len``.
        """
        scores[..., PAD] = -math.inf
        if self.unkpen:
            scores[..., UNK] -= self.unkpen
        ends = scores[at_limit, :, EOS] if len(at_limit) else None
        if position < self.min_len:
            scores[..., EOS] = -math.inf
        if ends is not None:
            scores[at_limit] = -math.inf
            scores[at_limit, :, EOS] = ends

    def norm(self, length: int) -> float:
        """What the score of a translation of ``length`` tokens is divided by."""
        return 1.0 if self.unnormalized else float(length**self.lenpen)


@dataclass(frozen=True)
class BatchOptions:
    """Batches."""

    dtype: str | None = option(None, choices=DTYPES, help="default: as the model was exported")
    batch_size: int = option(64, type=POSITIVE, help="sentences in a batch")
    max_tokens: int | None = option(
        None, type=POSITIVE, help="source tokens in a batch (default: no limit)"
    )
    shortlist: bool = switch("score only the words of the exported shortlist: faster, other scores")


class Hypothesis(NamedTuple):
    """A finished translation.

    Tokens end in end-of-sentence. Scores are natural logarithms: ``score`` is the sum of
    ``positional_scores``, divided by the length to the power of ``lenpen`` unless unnormalized.
    """

    tokens: list[int]
    score: float
    positional_scores: list[float]


class StepResult(NamedTuple):
    """A token that has just been chosen, like CTranslate2's ``GenerationStepResult``.

    Attributes:
        step: its position in the translation.
        batch_id: number of the sentence.
        is_last: whether it is end-of-sentence.
        token: its symbol, if the translator knows it.
    """

    step: int
    batch_id: int
    token_id: int
    log_prob: float
    is_last: bool
    token: str = ""
