"""The measures: sacreBLEU's metrics, on plain or Moses-tokenized text, each with its signature."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple, Self

from resmlp_mt.errors import UserError
from resmlp_mt.extras import installation
from resmlp_mt.scoring.cleaning import moses_language

# arguments of sacreBLEU's metrics, by the name of the metric
MetricOptions = Mapping[str, Mapping[str, Any]]


class Kind(NamedTuple):
    """How a measure is computed.

    Attributes:
        label: prefix of sacreBLEU's name of the metric.
        metric: bleu, chrf or ter.
        tokenization: for :func:`moses_tokenizer`; None for metrics that tokenize themselves.
        fixed: arguments of the metric that no option changes.
    """

    label: str
    metric: str
    tokenization: str | None = None
    fixed: Mapping[str, Any] = {}

    def takes(self, metric: str, argument: str) -> bool:
        """Whether an argument of a metric changes this measure."""
        is_fixed = argument in self.fixed or (argument == "tokenize" and self.tokenization)
        return self.metric == metric and not is_fixed


KINDS = {
    "bleu": Kind("", "bleu"),
    "chrf": Kind("", "chrf"),
    "chrf++": Kind("", "chrf", fixed={"word_order": 2}),
    "ter": Kind("", "ter"),
    "tokenized-bleu": Kind("tokenized ", "bleu", "moses"),
    "dash-split-bleu": Kind("dash-split tokenized ", "bleu", "moses-aggressive"),
    "compound-split-bleu": Kind("compound-split tokenized ", "bleu", "moses+compound_split"),
}
TOKENIZED = tuple(name for name, kind in KINDS.items() if kind.tokenization is not None)


@dataclass(frozen=True)
class Score:
    """A number and what it measures.

    Attributes:
        mean, ci: mean of the bootstrap, and half the width of its 95 % interval; None without it.
        precisions, brevity_penalty, ratio: for BLEU: percentages of n-grams, n = 1, 2, ..., the
            penalty, and the length of the translations divided by that of the references.
        verbose: sacreBLEU's breakdown, empty if there is none.
    """

    metric: str
    name: str
    score: float
    mean: float | None
    ci: float | None
    precisions: list[float] | None
    brevity_penalty: float | None
    ratio: float | None
    signature: str
    verbose: str


@dataclass(frozen=True)
class LengthScore:
    """The score of the sentences whose source has ``low`` to ``high`` tokens, both included.

    ``high`` is None in the last bucket.
    """

    bucket: str
    low: int
    high: int | None
    sentences: int
    score: float
    signature: str


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
    """One kind of score with its references.

    Args:
        metric: a key of ``KINDS``.
        references: one or more streams of sentences, all of one length.
        language: code of the target language; the tokenized measures need it.
        options: options of sacreBLEU's metrics.
        short: write signatures in sacreBLEU's short form.

    Attributes:
        arguments: arguments of sacreBLEU's metric, including the tokenizer.

    Raises:
        UserError: if words cannot be found in this language or by this tokenizer, or an extra is
            missing.
    """

    def __init__(
        self,
        metric: str,
        references: Sequence[Sequence[str]],
        language: str | None,
        options: MetricOptions,
        short: bool = False,
    ) -> None:
        from sacrebleu.metrics import METRICS

        from resmlp_mt.scoring.downloads import download

        self.metric = metric
        kind = KINDS[metric]
        self._label = kind.label
        self._short = short
        self._prepare: Callable[[str], str] = str.rstrip
        self._pretok: str | None = None
        arguments = {**options.get(kind.metric, {}), **kind.fixed}
        if kind.metric == "bleu":
            # The text was checked before; sacreBLEU's own warning would only repeat it.
            arguments["force"] = True
        if kind.tokenization is not None:
            self._prepare, self._pretok = _pretokenizer(kind.tokenization, language, references)
            arguments["tokenize"] = "none"
        elif kind.metric == "bleu" and arguments.get("tokenize") is None:
            from resmlp_mt.scoring.languages import bleu_tokenizer

            arguments["tokenize"] = bleu_tokenizer(language, references)
        elif kind.metric == "ter":
            from resmlp_mt.scoring.languages import check_ter

            check_ter(references, arguments)
        self.arguments = arguments
        self.references = [list(map(self._prepare, stream)) for stream in references]
        tokenizer = arguments.get("tokenize")
        try:
            if tokenizer:  # which may fetch a model, once
                with download(f"--tokenize {tokenizer}", "models", "choose another tokenizer"):
                    METRICS["BLEU"](tokenize=tokenizer)
            self._metric = METRICS[kind.metric.upper()](**arguments, references=self.references)
            if kind.metric == "chrf":
                compute = self._metric._compute_score_from_stats
                self._metric._compute_score_from_stats = _of_one_type(compute)
        except RuntimeError as error:  # raised by sacreBLEU if MeCab is missing
            from resmlp_mt.language_codes import TOKENIZER_PACKAGES  # its tables are slow to load

            if tokenizer not in TOKENIZER_PACKAGES:
                raise
            raise UserError(
                f"BLEU with the tokenizer {tokenizer} needs MeCab and its dictionary: run "
                f"{installation(TOKENIZER_PACKAGES[tokenizer])}, or choose another --tokenize."
            ) from error

    def prepared(self, hypotheses: Sequence[str]) -> list[str]:
        """The text that is given to sacreBLEU."""
        return list(map(self._prepare, hypotheses))

    def equals(self, other: Self, hypotheses: Sequence[str]) -> bool:
        """Whether both give the same score for these hypotheses, from the same tokens."""
        aside = {"tokenize": None, "force": None}  # what they do shows in the tokens
        texts = chain(
            ((self._prepare(line), other._prepare(line)) for line in hypotheses),
            zip(chain(*self.references), chain(*other.references), strict=True),
        )
        ours, theirs = self._metric._preprocess_segment, other._metric._preprocess_segment
        return (
            KINDS[self.metric].metric == KINDS[other.metric].metric
            and self.arguments | aside == other.arguments | aside
            # up to the first line that differs
            and all(ours(mine) == theirs(other_text) for mine, other_text in texts)
        )

    def score(self, hypotheses: Sequence[str], samples: int = 1) -> Score:
        """Score a system; with more than one bootstrap sample, with an interval."""
        result = self._metric.corpus_score(self.prepared(hypotheses), None, n_bootstrap=samples)
        return Score(
            metric=self.metric,
            name=self._label + result.name,
            score=float(result.score),
            mean=float(result._mean) if samples > 1 else None,
            ci=float(result._ci) if samples > 1 else None,
            precisions=getattr(result, "precisions", None),
            brevity_penalty=getattr(result, "bp", None),
            ratio=getattr(result, "ratio", None),
            signature=self._signature(self._metric.get_signature()),
            verbose=result._verbose,
        )

    def sentence_scores(self, hypotheses: Sequence[str], width: int) -> Iterator[str]:
        """A line for each sentence, as sacreBLEU writes it with --sentence-level.

        BLEU should use effective order here.
        """
        for hypothesis, *references in zip(
            self.prepared(hypotheses), *self.references, strict=True
        ):
            result = self._metric.sentence_score(hypothesis, references)
            signature = self._signature(self._metric.get_signature())
            yield self._label + result.format(width, False, signature)

    def compare(
        self, baseline: Sequence[str], hypotheses: Sequence[str], test: str, samples: int
    ) -> Comparison:
        """Run sacreBLEU's paired test: ``test`` is "bs" (bootstrap) or "ar" (randomization)."""
        from sacrebleu.significance import PairedTest  # imports numpy, so only if needed

        systems = [("baseline", self.prepared(baseline)), ("system", self.prepared(hypotheses))]
        paired = PairedTest(systems, {self.metric: self._metric}, None, test, samples)
        signatures, scores = paired()
        ((name, signature),) = signatures.items()
        first, second = scores[name]
        # sacreBLEU counts samples beyond the observed difference. Two outputs with equal scores
        # have none, so it would give them the smallest possible p.
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
            signature._abbr["pretok"] = "pretok"  # sacreBLEU has no short name for it
        return str(signature.format(self._short))


def _of_one_type(compute: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """chrF of resampled statistics, always as a number of numpy.

    Where nothing matches, sacreBLEU has Python's 0.0, and there is no mean of both types.
    """

    def computed(statistics: Any) -> Any:
        result = compute(statistics)
        if not isinstance(statistics, list):
            result.score = statistics.dtype.type(result.score)
        return result

    return computed


def _pretokenizer(
    tokenization: str, language: str | None, references: Sequence[Sequence[str]]
) -> tuple[Callable[[str], str], str]:
    """A tokenizer of Moses and its name for the signature.

    Raises:
        UserError: if Moses has no rules for the language, or cannot find its words.
    """
    import sacremoses

    from resmlp_mt.scoring.languages import script_without_words

    code = moses_language(language or "")
    script = script_without_words(references)
    if script not in (None, "Hangul"):
        raise UserError(
            f"Moses finds words by the spaces between them, and text in {script} script has none: "
            f"use -m bleu and chrf."
        )
    version = sacremoses.__version__
    return moses_tokenizer(code, tokenization), f"sacre{tokenization}[{code}]-{version}"


def moses_tokenizer(language: str, tokenization: str) -> Callable[[str], str]:
    """The function that tokenizes a sentence; tokens are separated by single spaces.

    Args:
        language: Moses' two-letter code.
        tokenization: "moses" is tokenizer.perl; "moses-aggressive" is tokenizer.perl -a, which
            splits at hyphens ("rich @-@ text"); "moses+compound_split" is tokenizer.perl, then
            the same split in the notation of the early papers ("rich ##AT##-##AT## text").

    Raises:
        UserError: if Moses has no rules for the language.
    """
    from sacremoses import MosesTokenizer  # slow, and --help does not need it

    tokenizer = MosesTokenizer(lang=moses_language(language))
    aggressive = tokenization == "moses-aggressive"
    compound_split = tokenization == "moses+compound_split"

    def tokenize(sentence: str) -> str:
        tokens: str = tokenizer.tokenize(
            sentence, aggressive_dash_splits=aggressive, return_str=True
        )
        if not compound_split:
            return tokens
        # On bytes, as in perl: a character with several bytes can be the right side of one hyphen
        # and the left side of the next ("a-ü-b"), but a character with one byte cannot ("a-u-b").
        return re.sub(rb"(\S)-(\S)", rb"\1 ##AT##-##AT## \2", tokens.encode()).decode()

    return tokenize


def length_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    sources: Sequence[str],
    borders: Sequence[int],
    bleu: Mapping[str, Any],
    short: bool = False,
) -> list[LengthScore]:
    """BLEU by source length, in tokens between white space; empty buckets are left out.

    Args:
        bleu: arguments of sacreBLEU's metric, with the tokenizer.
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
            continue
        part = [[stream[i] for i in chosen] for stream in references]
        measure = Measure("bleu", part, None, {"bleu": bleu}, short)
        result = measure.score([hypotheses[i] for i in chosen])
        # A part of the test set gets its own signature, in sacreBLEU's field for parts.
        nrefs, rest = result.signature.split("|", 1)
        subset = "S" if short else "subset"
        signature = f"{nrefs}|{subset}:source_tokens_{bucket}|{rest}"
        results.append(LengthScore(bucket, low, high, len(chosen), result.score, signature))
    return results
