"""The measures: sacreBLEU's metrics, on plain or Moses-tokenized text, each with its signature."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import sacremoses
from sacrebleu.metrics import BLEU, CHRF, TER

from resmlp_mt.scoring.cleaning import moses_language
from resmlp_mt.scoring.lines import InputError


class Kind(NamedTuple):
    """How a measure is computed; ``tokenization`` is None for metrics that tokenize themselves."""

    label: str
    metric: type[Any]
    tokenization: str | None = None


KINDS = {
    "bleu": Kind("", BLEU),
    "chrf": Kind("", CHRF),
    "ter": Kind("", TER),
    "tokenized-bleu": Kind("tokenized ", BLEU, "moses"),
    "dash-split-bleu": Kind("dash-split tokenized ", BLEU, "moses-aggressive"),
    "compound-split-bleu": Kind("compound-split tokenized ", BLEU, "moses+compound_split"),
}
TOKENIZED = tuple(name for name, kind in KINDS.items() if kind.tokenization is not None)


@dataclass(frozen=True)
class Score:
    """A number and what it measures; ``verbose`` is sacreBLEU's breakdown, empty if none."""

    metric: str
    name: str
    score: float
    signature: str
    verbose: str


@dataclass(frozen=True)
class LengthScore:
    """The score of the sentences whose source has ``low`` to ``high`` tokens, both included.

    ``high`` is None in the last bucket; score and signature are None in an empty one.
    """

    bucket: str
    low: int
    high: int | None
    sentences: int
    score: float | None
    signature: str | None


@dataclass(frozen=True)
class Comparison:
    """A system against a baseline; ``mean`` and ``ci`` (95 %) are the bootstrap's, if it ran."""

    metric: str
    name: str
    baseline: float
    baseline_mean: float | None
    baseline_ci: float | None
    score: float
    mean: float | None
    ci: float | None
    p_value: float
    signature: str


class Measure:
    """One kind of score with its references."""

    def __init__(
        self, metric: str, references: Sequence[Sequence[str]], language: str | None
    ) -> None:
        """Prepare the references.

        Args:
            metric: a key of ``KINDS``.
            references: one or more streams of sentences, all of one length.
            language: of the target side; the tokenized measures need it.

        Raises:
            InputError: if Moses has no rules for the language, or sacreBLEU lacks its tokenizer.
        """
        self.metric = metric
        kind = KINDS[metric]
        self._label = kind.label
        self._prepare: Callable[[str], str] = str.rstrip
        self._pretok: str | None = None
        if kind.tokenization is not None:
            self._prepare = moses_tokenizer(language or "", kind.tokenization)
            version = sacremoses.__version__
            self._pretok = f"sacre{kind.tokenization}[{language}]-{version}"
        options: dict[str, Any] = {"references": [list(map(self._prepare, r)) for r in references]}
        if kind.tokenization is not None:
            options.update(tokenize="none", force=True)
        elif kind.metric is BLEU:
            # The text was checked before; sacreBLEU's own warning would only repeat it.
            options.update(trg_lang=language or "", force=True)
        try:
            self._metric = kind.metric(**options)
        except (ImportError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"sacreBLEU cannot tokenize {language!r}: {reason}") from error

    def score(self, hypotheses: Sequence[str]) -> Score:
        """Score a system."""
        result = self._metric.corpus_score(list(map(self._prepare, hypotheses)), None)
        signature = self._signature(self._metric.get_signature())
        verbose = result._verbose
        return Score(self.metric, self._label + result.name, result.score, signature, verbose)

    def compare(
        self, baseline: Sequence[str], hypotheses: Sequence[str], test: str, samples: int
    ) -> Comparison:
        """Run sacreBLEU's paired test: ``test`` is "bs" (bootstrap) or "ar" (randomization)."""
        from sacrebleu.significance import PairedTest  # numpy, only where it is wanted

        systems = [
            ("baseline", list(map(self._prepare, baseline))),
            ("system", list(map(self._prepare, hypotheses))),
        ]
        paired = PairedTest(systems, {self.metric: self._metric}, None, test, samples)
        signatures, scores = paired()
        ((name, signature),) = signatures.items()
        first, second = scores[name]
        # sacreBLEU counts samples beyond the observed difference, and two outputs that a metric
        # cannot tell apart have none: it would call them different with the smallest p there is.
        p_value = 1.0 if first.score == second.score else float(second.p_value)
        return Comparison(
            metric=self.metric,
            name=self._label + name,
            baseline=float(first.score),
            baseline_mean=None if first.mean is None else float(first.mean),
            baseline_ci=None if first.ci is None else float(first.ci),
            score=float(second.score),
            mean=None if second.mean is None else float(second.mean),
            ci=None if second.ci is None else float(second.ci),
            p_value=p_value,
            signature=self._signature(signature),
        )

    def _signature(self, signature: Any) -> str:
        if self._pretok is not None:
            signature.update("pretok", self._pretok)
        return str(signature)


def moses_tokenizer(language: str, tokenization: str) -> Callable[[str], str]:
    """Return the function that tokenizes a sentence; tokens are separated by single blanks.

    Args:
        language: Moses' two-letter code.
        tokenization: "moses" is tokenizer.perl; "moses-aggressive" is tokenizer.perl -a, which
            splits at hyphens ("rich @-@ text"); "moses+compound_split" is tokenizer.perl, then
            the same split in the notation of the early papers ("rich ##AT##-##AT## text").

    Raises:
        InputError: if Moses has no rules for the language.
    """
    tokenizer = sacremoses.MosesTokenizer(lang=moses_language(language))
    aggressive = tokenization == "moses-aggressive"
    compound_split = tokenization == "moses+compound_split"

    def tokenize(sentence: str) -> str:
        tokens: str = tokenizer.tokenize(
            sentence, aggressive_dash_splits=aggressive, return_str=True
        )
        if not compound_split:
            return tokens
        # On bytes, as perl does it: a character of several bytes can be the right side of one
        # hyphen and the left side of the next ("a-ü-b"), one of a single byte cannot ("a-u-b").
        return re.sub(rb"(\S)-(\S)", rb"\1 ##AT##-##AT## \2", tokens.encode()).decode()

    return tokenize


def length_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    sources: Sequence[str],
    borders: Sequence[int],
    language: str | None,
) -> list[LengthScore]:
    """BLEU by source length in tokens, which white space separates.

    Args:
        borders: the first length of every bucket but the first, which starts at 0.
    """
    lengths = [len(source.split()) for source in sources]
    starts = [0, *borders]
    results = []
    for low, following in [*pairwise(starts), (starts[-1], None)]:
        chosen = [
            i for i, n in enumerate(lengths) if n >= low and (following is None or n < following)
        ]
        high = None if following is None else following - 1
        bucket = f"{low}+" if high is None else f"{low}-{high}"
        if not chosen:
            results.append(LengthScore(bucket, low, high, 0, None, None))
            continue
        measure = Measure("bleu", [[r[i] for i in chosen] for r in references], language)
        result = measure.score([hypotheses[i] for i in chosen])
        # A part of the test set gets a signature of its own, in sacreBLEU's field for parts.
        nrefs, rest = result.signature.split("|", 1)
        signature = f"{nrefs}|subset:source_tokens_{bucket}|{rest}"
        results.append(LengthScore(bucket, low, high, len(chosen), result.score, signature))
    return results
