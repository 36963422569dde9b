"""The options of the score command, with sacreBLEU's names where it has them."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from resmlp_mt.command_line import Parser, flag, option, switch
from resmlp_mt.option_types import POSITIVE, number
from resmlp_mt.scoring.cleaning import SYMBOLS, Cleaning
from resmlp_mt.scoring.measures import KINDS, TOKENIZED

BUCKETS = "10,20,30,40,50,60"
# sacreBLEU's numbers of samples
SAMPLES = {"bs": 1000, "ar": 10000}
LONGEST = 100  # n-grams; each size takes a pass over the text
TOKENIZERS = (
    *("none", "zh", "13a", "intl", "char", "ja-mecab", "ko-mecab"),
    *("spm", "flores101", "flores200", "spBLEU-1K"),
)
SEVERAL = number(int, least=2, most=1_000_000)  # one sample has no interval


def borders(text: str) -> list[int]:
    """The first length of each bucket: increasing positive numbers, separated by commas."""
    try:
        found = [int(border) for border in text.split(",")]
    except ValueError:
        found = []
    if not found or found[0] < 1 or found != sorted(set(found)):
        raise argparse.ArgumentTypeError(f"expected increasing positive numbers, got {text!r}")
    return found


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Text."""

    refs: list[str] = option(
        [], "refs", nargs="*", metavar="REF", help="raw references, as with --ref"
    )
    generate_output: str | None = option(None, metavar="FILE", help="output of fairseq-generate")
    input: list[str] = option(
        [], nargs="+", metavar="FILE", help="translations (default: standard input)"
    )
    ref: list[str] | None = option(None, nargs="+", metavar="FILE", help="raw references")
    test_set: str | None = option(
        None, "-t", metavar="NAME", help="sacreBLEU's references; needs -l"
    )
    language_pair: str | None = option(
        None, "-l", metavar="SRC-TGT",
        help="such as en-de or en-zh_CN; chooses the tokenizer of BLEU",
    )  # fmt: skip
    src: str | None = option(None, metavar="FILE", help="source text, for BLEU by source length")
    remove_bpe: str = option(
        "none", "--post-process", nargs="?", const="subword_nmt", choices=SYMBOLS, metavar="SYMBOL",
        help="join subwords of the system's text, as fairseq-generate --remove-bpe does: "
        "sentencepiece, subword_nmt (without a value), wordpiece, letter or _EOW (default: none)",
    )  # fmt: skip
    detokenize: str | None = option(
        None, metavar="LANG", help="undo the Moses tokenization of the system's text"
    )
    force: bool = switch("score text even if it looks like subwords, tokens or markup")

    @property
    def system(self) -> str:
        """The file of the translations."""
        return (self.input or ["-"])[0] if self.generate_output is None else self.generate_output

    @property
    def references(self) -> list[str] | None:
        """The files of the references."""
        return self.ref or self.refs or None

    @property
    def cleaning(self) -> Cleaning:
        """How the system's text becomes plain."""
        return Cleaning(self.remove_bpe, self.detokenize, self.force)


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What is computed."""

    metrics: list[str] | None = option(
        None, "-m", nargs="+", type=str.lower, choices=list(KINDS), metavar="NAME",
        help=f"{', '.join(KINDS)} (default: all that can be computed)",
    )  # fmt: skip
    sentence_level: bool = switch("one score per sentence, by one metric (default: bleu)", "-sl")
    length_buckets: list[int] | None = option(
        None, type=borders, metavar="N,N,...",
        help=f"where the buckets of the source length begin (default: {BUCKETS})",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BleuOptions:
    """BLEU."""

    tokenize: str | None = option(
        None, "-tok", choices=TOKENIZERS, metavar="NAME",
        help=f"{', '.join(TOKENIZERS)} (default: zh, ja-mecab and ko-mecab for Chinese, Japanese "
        "and Korean, else 13a)",
    )  # fmt: skip
    lowercase: bool = switch("ignore case", "-lc")
    smooth_method: str = option(
        "exp", "-s", choices=("none", "floor", "add-k", "exp"),
        help="smoothing of n-grams that do not match",
    )  # fmt: skip
    smooth_value: float | None = option(
        None, "-sv", type=number(float, least=0),
        help="value of floor (default: 0.1) and add-k (default: 1)",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ChrfOptions:
    """chrF."""

    chrf_char_order: int = option(
        6, "-cc", type=number(int, least=1, most=LONGEST), help="longest n-grams of characters"
    )
    chrf_word_order: int = option(
        0, "-cw", type=number(int, least=0, most=LONGEST),
        help="longest n-grams of words in chrf; chrf++ has 2",
    )  # fmt: skip
    chrf_beta: int = option(2, type=POSITIVE, help="weight of recall")
    chrf_whitespace: bool = switch("count white space")
    chrf_lowercase: bool = switch("ignore case")
    chrf_eps_smoothing: bool = switch("as chrF++.py, NLTK and Moses smooth")


@dataclass(frozen=True, kw_only=True)
class TerOptions:
    """TER."""

    ter_case_sensitive: bool = switch("do not ignore case")
    ter_asian_support: bool = switch("split Asian characters")
    ter_no_punct: bool = switch("leave out punctuation")
    ter_normalized: bool = switch("basic tokenization")


@dataclass(frozen=True, kw_only=True)
class StatisticsOptions:
    """Confidence and significance."""

    confidence: bool = switch("95 %% interval by bootstrap resampling", "-ci")
    confidence_n: int | None = option(
        None, "-cin", type=SEVERAL, help=f"samples (default: {SAMPLES['bs']})"
    )
    baseline: str | None = option(
        None, metavar="FILE", help="another system's output, of the same kind as the system"
    )
    paired_bs: bool = switch("paired bootstrap (the default)", "-pbs")
    paired_ar: bool = switch("paired approximate randomization", "-par")
    paired_bs_n: int | None = option(
        None, "-pbsn", type=SEVERAL, help=f"samples (default: {SAMPLES['bs']})"
    )
    paired_ar_n: int | None = option(
        None, "-parn", type=SEVERAL, help=f"samples (default: {SAMPLES['ar']})"
    )


# in --help, the last base comes first
@dataclass(frozen=True, kw_only=True)
class Options(
    StatisticsOptions, TerOptions, ChrfOptions, BleuOptions, MeasureOptions, InputOptions
):
    """Output."""

    json: Path | None = option(None, metavar="FILE", help="write the full report as JSON")
    width: int = option(1, "-w", type=number(int, least=0, most=12), help="decimals")
    short: bool = switch("short signatures", "-sh")
    quiet: bool = switch("print only the tables", "-q")

    @property
    def of_metrics(self) -> dict[str, dict[str, Any]]:
        """The arguments of each of sacreBLEU's metrics, by its name."""
        found = {
            metric: {
                field.name.removeprefix(f"{metric}_"): getattr(self, field.name)
                for field in fields(group)
            }
            for metric, group in OF_METRICS.items()
        }
        if self.sentence_level:
            found["bleu"]["effective_order"] = True
        return found


OF_METRICS: dict[str, type[BleuOptions] | type[ChrfOptions] | type[TerOptions]] = {
    "bleu": BleuOptions,
    "chrf": ChrfOptions,
    "ter": TerOptions,
}
"""The options of sacreBLEU's metrics, by their names."""


def parse_args(argv: Sequence[str] | None) -> Options:
    """Parse and check the command line; exits with status 2 on a wrong one."""
    parser = Parser(
        "resmlp_mt.score",
        "Score translations: sacreBLEU, chrF, TER and tokenized BLEU with signatures.",
    )
    parser.add_options(Options)
    parser.refuse("the sacrebleu command", "sacrebleu")
    options = Options(**vars(parser.parse_args(argv)))
    _check(parser, options)
    return options


def _check(parser: Parser, options: Options) -> None:
    """Refuse options that do not fit each other, before any work."""
    metrics = options.metrics or []
    if len(options.input) > 1:
        parser.error(
            "-i takes one system: compare it with another one by --baseline FILE, and give "
            "references before -i or after --ref"
        )
    if options.input and options.generate_output is not None:
        parser.error("-i and --generate-output both give the translations: drop one")
    if options.refs and (options.ref or options.test_set):
        parser.error(
            f"{options.refs[0]}: give references only once: first, after --ref, or by -t NAME"
        )
    if options.ref and options.test_set:
        parser.error("--ref and -t both give the references: drop one")
    if options.language_pair is not None:
        # here, because the tables of languages are slow to load
        from resmlp_mt.scoring.languages import language_pair

        try:
            language_pair(options.language_pair)
        except ValueError as error:
            parser.error(f"-l {options.language_pair}: {error}")
    elif options.test_set is not None:
        parser.error(f"-t {options.test_set} needs a language pair: add -l, such as -l en-de")
    if (options.generate_output, options.references, options.test_set) == (None, None, None):
        parser.error("no references: give --ref FILE, or -t NAME -l SRC-TGT")
    if options.sentence_level:
        if len(set(metrics)) > 1:
            parser.error("--sentence-level takes one metric: give one name to -m")
        alone = "confidence", "baseline", "length_buckets", "json"
        if given := [name for name in alone if getattr(options, name)]:
            parser.error(
                f"{flag(given[0])} belongs to scores of a whole text: drop --sentence-level"
            )
    if options.smooth_value is not None and options.smooth_method not in ("floor", "add-k"):
        parser.error("--smooth-value is for --smooth-method floor and add-k: add one of them")
    used = [KINDS[name] for name in metrics or (["bleu"] if options.sentence_level else KINDS)]
    for metric, group in OF_METRICS.items():
        for field in fields(group):
            argument = field.name.removeprefix(f"{metric}_")
            is_given = getattr(options, field.name) != field.default
            if is_given and not any(kind.takes(metric, argument) for kind in used):
                parser.error(f"{flag(field.name)} is for {metric}: add {metric} to -m, or drop it")
    if metrics and "bleu" not in metrics and options.length_buckets:
        parser.error("--length-buckets divides BLEU: add bleu to -m")
    sources = options.src, options.generate_output, options.test_set
    if options.length_buckets and sources == (None, None, None):
        parser.error("--length-buckets needs the source text: add --src FILE")
    is_typed = options.generate_output is None and options.system == "-"
    if is_typed and getattr(sys.stdin, "isatty", bool)():
        parser.error("no translations: give -i FILE or --generate-output FILE")
    if options.language_pair is None and set(metrics) & set(TOKENIZED):
        parser.error(f"-m {' '.join(metrics)}: tokenized BLEU needs -l SRC-TGT")
    if options.confidence_n is not None and not options.confidence:
        parser.error("--confidence-n is the number of samples of --confidence: add --confidence")
    paired = options.paired_bs, options.paired_ar, options.paired_bs_n, options.paired_ar_n
    if options.baseline is None and any(paired):
        parser.error("--paired-bs and --paired-ar compare two systems: add --baseline FILE")
    if options.paired_bs and options.paired_ar:
        parser.error("--paired-bs and --paired-ar are two tests: drop one")
    if options.paired_ar and options.paired_bs_n is not None:
        parser.error("--paired-bs-n is for --paired-bs: give --paired-ar-n")
    if not options.paired_ar and options.paired_ar_n is not None:
        parser.error("--paired-ar-n is for --paired-ar: add it")
    if options.baseline is not None and options.confidence:
        parser.error("--confidence is for one system: drop it, --baseline gives intervals too")
    if [options.system, options.src, *(options.references or [])].count("-") > 1:
        parser.error("- is standard input, which has one text: name a file for each of the others")
