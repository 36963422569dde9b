"""The options of the score command, with sacreBLEU's names where it has them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from resmlp_mt.command_line import Parser, number
from resmlp_mt.scoring.cleaning import SYMBOLS
from resmlp_mt.scoring.measures import KINDS, TOKENIZED, MetricOptions

BUCKETS = "10,20,30,40,50,60"
# sacreBLEU's numbers of samples
SAMPLES = {"bs": 1000, "ar": 10000}
TOKENIZERS = (
    *("none", "zh", "13a", "intl", "char", "ja-mecab", "ko-mecab"),
    *("spm", "flores101", "flores200", "spBLEU-1K"),
)

# Options of the sacrebleu command alone, and what there is here.
OF_SACREBLEU = {
    "-b --score-only": "every number is printed with its signature",
    "-f --format": "tables are printed, and --json FILE writes the report",
    "-nr --num-refs": "give --ref one file for each reference",
    "-e --encoding": "text must be UTF-8: convert it",
    "-j --paired-jobs": "one system is compared with one baseline, in one process",
    "-nc --no-color": "nothing is coloured",
    "-ol --origlang --subset -d --detail": "write a part of a test set with sacrebleu --echo, "
    "and give it to --ref",
    "--list --echo --download --citation --cite": "run sacrebleu",
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line; exits with status 2 on a wrong one."""
    parser = Parser(
        "resmlp_mt.score",
        "Score translations: sacreBLEU, chrF, TER and tokenized BLEU with signatures.",
    )
    _add_input(parser)
    _add_metrics(parser)
    _add_statistics(parser)
    _add_output(parser)
    args = parser.parse_args(argv)
    _check(parser, args)
    return args


def metric_options(args: argparse.Namespace) -> MetricOptions:
    """The options of each of sacreBLEU's metrics, by its name."""
    return {
        metric: {
            name.removeprefix(f"{metric}_"): value
            for name, value in vars(args).items()
            if name.startswith(f"{metric}_")
        }
        for metric in ("bleu", "chrf", "ter")
    }


def borders(text: str) -> list[int]:
    """The first length of each bucket: increasing positive numbers, separated by commas."""
    try:
        found = [int(border) for border in text.split(",")]
    except ValueError:
        found = []
    if not found or found[0] < 1 or found != sorted(set(found)):
        raise argparse.ArgumentTypeError(f"expected increasing positive numbers, got {text!r}")
    return found


def _add_input(parser: argparse.ArgumentParser) -> None:
    system = parser.add_mutually_exclusive_group()
    system.add_argument("--generate-output", metavar="FILE", help="output of fairseq-generate")
    system.add_argument(
        "-i",
        "--input",
        metavar="FILE",
        nargs="+",
        default=["-"],
        help="translations (default: standard input)",
    )
    parser.add_argument("refs", nargs="*", metavar="REF", help="raw references, as with --ref")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--ref", metavar="FILE", nargs="+", help="raw references")
    target.add_argument("-t", "--test-set", metavar="NAME", help="sacreBLEU's references; needs -l")
    parser.add_argument(
        "-l",
        "--language-pair",
        metavar="SRC-TGT",
        help="such as en-de or en-zh_CN; chooses the tokenizer of BLEU",
    )
    parser.add_argument("--src", metavar="FILE", help="source text, for BLEU by source length")
    parser.add_argument(
        "--remove-bpe",
        "--post-process",
        nargs="?",
        const="subword_nmt",
        default="none",
        choices=SYMBOLS,
        metavar="SYMBOL",
        help="join subwords of the system's text, as fairseq-generate --remove-bpe does: "
        "sentencepiece, subword_nmt (without a value), wordpiece, letter or _EOW (default: none)",
    )
    parser.add_argument(
        "--detokenize", metavar="LANG", help="undo the Moses tokenization of the system's text"
    )
    parser.add_argument(
        "--force", action="store_true", help="score text even if it looks like subwords or tokens"
    )


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is computed")
    group.add_argument(
        "-m",
        "--metrics",
        nargs="+",
        choices=list(KINDS),
        metavar="NAME",
        help=f"{', '.join(KINDS)} (default: all that can be computed)",
    )
    group.add_argument(
        "-sl",
        "--sentence-level",
        action="store_true",
        help="one score per sentence, by one metric (default: bleu)",
    )
    group.add_argument(
        "--length-buckets",
        metavar="N,N,...",
        type=borders,
        help=f"where the buckets of the source length begin (default: {BUCKETS})",
    )
    bleu = parser.add_argument_group("BLEU")
    bleu.add_argument(
        "-tok",
        "--tokenize",
        dest="bleu_tokenize",
        choices=TOKENIZERS,
        metavar="NAME",
        help=f"{', '.join(TOKENIZERS)} (default: zh, ja-mecab and ko-mecab for Chinese, Japanese "
        f"and Korean, else 13a)",
    )
    bleu.add_argument(
        "-lc", "--lowercase", dest="bleu_lowercase", action="store_true", help="ignore case"
    )
    bleu.add_argument(
        "-s",
        "--smooth-method",
        dest="bleu_smooth_method",
        choices=("none", "floor", "add-k", "exp"),
        default="exp",
        help="smoothing of n-grams that do not match",
    )
    bleu.add_argument(
        "-sv",
        "--smooth-value",
        dest="bleu_smooth_value",
        type=number(float),
        metavar="X",
        help="value of floor (default: 0.1) and add-k (default: 1)",
    )
    chrf = parser.add_argument_group("chrF")
    for names, least, default, text in (
        (("-cc", "--chrf-char-order"), 1, 6, "longest n-grams of characters"),
        (("-cw", "--chrf-word-order"), 0, 0, "longest n-grams of words in chrf; chrf++ has 2"),
        (("--chrf-beta",), 1, 2, "weight of recall"),
    ):
        chrf.add_argument(
            *names, type=number(int, least=least), default=default, metavar="N", help=text
        )
    chrf.add_argument("--chrf-whitespace", action="store_true", help="count white space")
    chrf.add_argument("--chrf-lowercase", action="store_true", help="ignore case")
    chrf.add_argument(
        "--chrf-eps-smoothing", action="store_true", help="as chrF++.py, NLTK and Moses smooth"
    )
    ter = parser.add_argument_group("TER")
    ter.add_argument("--ter-case-sensitive", action="store_true", help="do not ignore case")
    ter.add_argument("--ter-asian-support", action="store_true", help="split Asian characters")
    ter.add_argument("--ter-no-punct", action="store_true", help="leave out punctuation")
    ter.add_argument("--ter-normalized", action="store_true", help="basic tokenization")


def _add_statistics(parser: argparse.ArgumentParser) -> None:
    confidence = parser.add_argument_group("confidence")
    confidence.add_argument(
        "-ci", "--confidence", action="store_true", help="95 %% interval by bootstrap resampling"
    )
    confidence.add_argument(
        "-cin",
        "--confidence-n",
        type=number(int, least=2),  # one sample has no interval
        metavar="N",
        help=f"samples (default: {SAMPLES['bs']})",
    )
    paired = parser.add_argument_group("significance")
    paired.add_argument(
        "--baseline", metavar="FILE", help="another system's output, of the same kind as the system"
    )
    test = paired.add_mutually_exclusive_group()
    test.add_argument(
        "-pbs", "--paired-bs", action="store_true", help="paired bootstrap (the default)"
    )
    test.add_argument(
        "-par", "--paired-ar", action="store_true", help="paired approximate randomization"
    )
    for test_name, count in SAMPLES.items():
        paired.add_argument(
            f"-p{test_name}n",
            f"--paired-{test_name}-n",
            metavar="N",
            type=number(int, least=2),
            help=f"samples (default: {count})",
        )


def _add_output(parser: Parser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", type=Path, help="write the full report as JSON")
    output.add_argument(
        "-w", "--width", metavar="N", type=number(int, least=0, most=12), default=1, help="decimals"
    )
    output.add_argument("-sh", "--short", action="store_true", help="short signatures")
    output.add_argument("-q", "--quiet", action="store_true", help="print only the tables")
    parser.refuse("the sacrebleu command", OF_SACREBLEU)


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that do not fit each other, before any work."""
    metrics = args.metrics or []
    if len(args.input) > 1:
        parser.error(
            "-i takes one system: compare it with another one by --baseline FILE, and give "
            "references before -i or after --ref"
        )
    (args.input,) = args.input
    if args.refs and (args.ref or args.test_set):
        parser.error(
            f"{args.refs[0]}: give references only once: first, after --ref, or by -t NAME"
        )
    args.ref = args.ref or args.refs or None
    if args.language_pair is not None:
        # here, because the tables of languages are slow to load
        from resmlp_mt.scoring.languages import language_pair

        try:
            language_pair(args.language_pair)
        except ValueError as error:
            parser.error(f"-l {args.language_pair}: {error}")
    if args.test_set is not None and args.language_pair is None:
        parser.error(f"-t {args.test_set} needs a language pair: add -l, such as -l en-de")
    if args.generate_output is None and args.ref is None and args.test_set is None:
        parser.error("no references: give --ref FILE, or -t NAME -l SRC-TGT")
    if args.sentence_level:
        if len(set(metrics)) > 1:
            parser.error("--sentence-level takes one metric: give one name to -m")
        alone = "confidence", "baseline", "length_buckets", "json"
        if given := [option for option in alone if getattr(args, option)]:
            option = given[0].replace("_", "-")
            parser.error(f"--{option} belongs to scores of a whole text: drop --sentence-level")
    if args.confidence_n is not None and not args.confidence:
        parser.error("--confidence-n is the number of samples of --confidence: add --confidence")
    paired_options = (args.paired_bs, args.paired_ar, args.paired_bs_n, args.paired_ar_n)
    if args.baseline is None and any(paired_options):
        parser.error("--paired-bs and --paired-ar compare two systems: add --baseline FILE")
    if args.paired_ar and args.paired_bs_n is not None:
        parser.error("--paired-bs-n is for --paired-bs: give --paired-ar-n")
    if not args.paired_ar and args.paired_ar_n is not None:
        parser.error("--paired-ar-n is for --paired-ar: add it")
    if args.baseline is not None and args.confidence:
        parser.error("--confidence is for one system: drop it, --baseline gives intervals too")
    if args.bleu_smooth_value is not None and args.bleu_smooth_method not in ("floor", "add-k"):
        parser.error("--smooth-value is for --smooth-method floor and add-k: add one of them")
    kinds = {kind.metric for kind in KINDS.values()}
    used = [KINDS[name] for name in metrics or (["bleu"] if args.sentence_level else KINDS)]
    for action in parser._actions:
        kind, _, argument = action.dest.partition("_")
        is_given = kind in kinds and getattr(args, action.dest) != action.default
        if is_given and not any(each.takes(kind, argument) for each in used):
            parser.error(f"{action.option_strings[-1]} is for {kind}: add {kind} to -m, or drop it")
    if metrics and "bleu" not in metrics and args.length_buckets:
        parser.error("--length-buckets divides BLEU: add bleu to -m")
    sources = (args.src, args.generate_output, args.test_set)
    if args.length_buckets and sources == (None, None, None):
        parser.error("--length-buckets needs the source text: add --src FILE")
    is_typed = args.generate_output is None and args.input == "-"
    if is_typed and getattr(sys.stdin, "isatty", bool)():
        parser.error("no translations: give -i FILE or --generate-output FILE")
    if args.language_pair is None and set(metrics) & set(TOKENIZED):
        parser.error(f"-m {' '.join(metrics)}: tokenized BLEU needs -l SRC-TGT")
    if args.json is not None and not args.json.resolve().parent.is_dir():
        parser.error(f"--json {args.json}: there is no folder {args.json.parent}")
