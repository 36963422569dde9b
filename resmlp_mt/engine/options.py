"""Options and results of a search, for every kind of model.

Only the standard library is imported here, so that ``--help`` answers at once.
"""

import argparse
import math
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self, cast

from resmlp_mt.command_line import number
from resmlp_mt.engine.inputs import check_type
from resmlp_mt.errors import UserError

DTYPES = ("float32", "bfloat16", "int8")
"""What embeddings and linear layers may be; everything else stays in float32 or bfloat16."""

LEAST = {
    "beam": 1, "min_len": 0, "max_len_a": 0, "max_len_b": 0, "no_repeat_ngram_size": 0,
    "coverage_penalty": 0,
}  # fmt: skip
MOST_LENPEN = 10  # the lengths that models allow, to this power, still fit into a float32


@dataclass(frozen=True)
class SearchOptions:
    """Options of the search; see ``fairseq-generate --help``.

    Attributes:
        no_repeat_ngram_size: no n-gram of this size occurs twice; 0 allows all.
        repetition_penalty: before the softmax, divides positive scores of earlier tokens and
            multiplies negative ones (CTranslate2).
        coverage_penalty: beta of Wu et al. 2016, equation 14: after the search, hypotheses are
            ranked again, and those that leave out parts of the source lose (CTranslate2).
        disable_unk: no hypothesis has an unknown word (CTranslate2).
        sampling: draw ``beam`` hypotheses by their probabilities instead of searching.
        sampling_topk: draw among this many best tokens, -1 for all.
        sampling_topp: draw among the best tokens that together have this probability, -1 for all.
        seed: seed of the draws.

    Raises:
        TypeError: if an option is of another type.
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
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    coverage_penalty: float = 0.0
    disable_unk: bool = False
    sampling: bool = False
    sampling_topk: int = -1
    sampling_topp: float = -1.0
    seed: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            check_type(field.name, getattr(self, field.name), cast(type, field.type))
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise UserError(f"{_flag(name)} must be at least {least}, but is {value}.")
        for name in ("repetition_penalty", "temperature"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UserError(f"{_flag(name)} must be above 0, but is {value}.")
        for name in ("lenpen", "unkpen"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"--{name} must be a number, but is {getattr(self, name)}.")
        if not abs(self.lenpen) <= MOST_LENPEN:
            raise UserError(
                f"--lenpen must be between -{MOST_LENPEN} and {MOST_LENPEN}, but is {self.lenpen}."
            )
        if self.sampling_topk != -1 and self.sampling_topk < 1:
            raise UserError(f"--sampling-topk must be above 0, but is {self.sampling_topk}.")
        if self.sampling_topp != -1 and not 0 < self.sampling_topp <= 1:
            raise UserError(f"--sampling-topp must be in (0, 1], but is {self.sampling_topp}.")
        if not self.sampling and (self.sampling_topk != -1 or self.sampling_topp != -1):
            raise UserError("--sampling-topk and --sampling-topp belong to --sampling: add it.")

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        """What a command line with :func:`add_search_options` says."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    def changed(self, **changes: Any) -> Self:
        """A copy with the changes that are not None."""
        return replace(self, **{name: new for name, new in changes.items() if new is not None})

    @property
    def need_the_past(self) -> bool:
        """Whether a step depends on the tokens of earlier steps."""
        return bool(self.no_repeat_ngram_size) or self.repetition_penalty != 1.0

    @property
    def need_pytorch(self) -> bool:
        """Whether the search over ONNX graphs lacks one of these options."""
        is_plain = not (self.coverage_penalty or self.disable_unk or self.sampling)
        return self.need_the_past or not is_plain

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

    def norm(self, length: int) -> float:
        """What the score of a translation of ``length`` tokens is divided by."""
        return 1.0 if self.unnormalized else float(length**self.lenpen)


OF_OTHERS = {
    "--path --model --model-path": "give the model alone, as MODEL",
    "-s --source-lang --src-lang --src -t --target-lang --tgt-lang --tgt --from --to --task "
    "--user-dir": "the model knows it, leave it out",
    "--bpe --remove-bpe --post-process": "text goes in and out without subwords, leave it out",
    "--tokenizer": "an exported model takes raw text, leave it out",
    "--fp16 --bf16 --half": "use --dtype bfloat16",
    "--compute-type": "use --dtype",
    "--inter-threads": "use --workers",
    "--intra-threads": "use --threads",
    "--max-batch-size": "use --batch-size",
    "--beam-size --num-beams": "use --beam",
    "--length-penalty": "use --lenpen",
    "--max-length --max-decoding-length --max-new-tokens": "use --max-len-b",
    "--min-length --min-decoding-length --min-new-tokens": "use --min-len",
    "--do-sample": "use --sampling",
    "--top-k --random-sampling-topk": "use --sampling-topk",
    "--top-p --random-sampling-topp": "use --sampling-topp",
    "--replace-unk": "--disable-unk leaves unknown words out",
    "--score-reference --prefix-size --target-prefix": "in Python, Translator has score_batch and "
    "target_prefix",
    "--constraints --diverse-beam-groups --lm-path": "use fairseq-interactive",
}
"""Options of other translation commands, and what there is here."""


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    """Give a command the options of a translator besides those of the search."""
    parser.add_argument("--dtype", choices=DTYPES, help="default: as the model was exported")
    parser.add_argument(
        "--batch-size",
        type=number(int, least=1),
        default=64,
        metavar="N",
        help="sentences in a batch",
    )
    parser.add_argument(
        "--max-tokens", type=number(int, least=1), metavar="N", help="source tokens in a batch"
    )
    parser.add_argument(
        "--shortlist",
        action="store_true",
        help="score only the words of the exported shortlist: faster, other scores",
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Give a command the options of the search, under fairseq's names where it has them."""
    search = parser.add_argument_group("search")
    defaults = SearchOptions()
    for option, kind, metavar, text in (
        ("beam", int, "N", "hypotheses"),
        ("lenpen", float, "X", "power of the length that divides scores: larger, longer output"),
        ("unkpen", float, "X", "penalty of an unknown word"),
        ("temperature", float, "X", "divisor of the scores before the softmax"),
        ("min-len", int, "N", "least number of tokens of a translation"),
        ("max-len-a", float, "X", "a in the largest number of tokens, a * source tokens + b"),
        ("max-len-b", int, "N", "b in the largest number of tokens"),
        ("no-repeat-ngram-size", int, "N", "no n-gram of this size occurs twice, 0 allows all"),
        ("repetition-penalty", float, "X", "divisor of the scores of earlier tokens"),
        ("coverage-penalty", float, "X", "penalty for leaving out parts of the source"),
        ("sampling-topk", int, "K", "draw among the K best tokens, -1 for all"),
        ("sampling-topp", float, "P", "draw among the best tokens up to probability P, -1 for all"),
        ("seed", int, "N", "seed of the draws"),
    ):
        default = getattr(defaults, option.replace("-", "_"))
        search.add_argument(
            f"--{option}", type=number(kind), default=default, metavar=metavar, help=text
        )
    search.add_argument("--unnormalized", action="store_true", help="compare sums of scores")
    search.add_argument("--disable-unk", action="store_true", help="no unknown words")
    search.add_argument(
        "--sampling", action="store_true", help="draw --beam translations instead of searching"
    )


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
