"""``python -m resmlp_mt.score``: every kind of BLEU, chrF and TER, each with its signature.

    python -m resmlp_mt.score --generate-output gen.txt --ref test.de -l en-de
    python -m resmlp_mt.score -i test.hyp.de --ref test.de --src test.en -l en-de
    python -m resmlp_mt.score -i newstest2014.hyp.de -t wmt14/full -l en-de

Options have sacreBLEU's names where it has them. docs/scores.md explains which BLEU is which.
"""

import argparse
import logging
import platform
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import sacrebleu
import sacremoses

from resmlp_mt.scoring.cleaning import SYMBOLS, Cleaning, moses_languages
from resmlp_mt.scoring.generate_output import GenerateOutput, read_generate_output
from resmlp_mt.scoring.lines import InputError, Sentences, read_lines
from resmlp_mt.scoring.measures import KINDS, TOKENIZED, Measure, length_scores
from resmlp_mt.scoring.report import Report, write_json

BUCKETS = "10,20,30,40,50,60"
# sacreBLEU's numbers of samples
SAMPLES = {"bs": 1000, "ar": 10000}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line; exits with status 2 on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m resmlp_mt.score",
        description="Score translations: sacreBLEU, chrF, TER and tokenized BLEU with signatures.",
    )
    system = parser.add_mutually_exclusive_group()
    system.add_argument("--generate-output", metavar="FILE", help="output of fairseq-generate")
    system.add_argument(
        "-i", "--input", metavar="FILE", default="-", help="translations (default: standard input)"
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--ref", metavar="FILE", nargs="+", help="raw references")
    target.add_argument("-t", "--test-set", metavar="NAME", help="sacreBLEU's references; needs -l")
    parser.add_argument(
        "-l", "--language-pair", metavar="SRC-TGT", help="such as en-de; for tokenized BLEU"
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
        help="put subwords of the system's text together, as fairseq-generate --remove-bpe does: "
        "sentencepiece, subword_nmt (without a value), wordpiece, letter or _EOW",
    )
    parser.add_argument(
        "--detokenize", metavar="LANG", help="undo the Moses tokenization of the system's text"
    )
    parser.add_argument(
        "--force", action="store_true", help="score text that looks like subwords or tokens"
    )
    parser.add_argument(
        "-m",
        "--metrics",
        nargs="+",
        choices=list(KINDS),
        metavar="NAME",
        help=f"{', '.join(KINDS)} (default: all that can be computed)",
    )
    parser.add_argument(
        "--length-buckets",
        metavar="N,N,...",
        type=_borders,
        help=f"where the buckets of the source length begin (default: {BUCKETS})",
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
            type=_positive,
            help=f"samples (default: {count})",
        )
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", type=Path, help="write the full report as JSON")
    output.add_argument(
        "-w",
        "--width",
        metavar="N",
        type=int,
        choices=range(13),
        default=1,
        help="decimals, default: 1",
    )
    output.add_argument("-q", "--quiet", action="store_true", help="print the tables alone")
    args = parser.parse_args(argv)

    if args.language_pair is not None and not re.fullmatch(r"\w+-\w+", args.language_pair):
        parser.error(f"-l {args.language_pair}: expected source and target, such as en-de")
    if args.test_set is not None and args.language_pair is None:
        parser.error(f"-t {args.test_set} needs a language pair: add -l, such as -l en-de")
    if args.generate_output is None and args.ref is None and args.test_set is None:
        parser.error("no references: give --ref FILE, or -t NAME -l SRC-TGT")
    paired_options = (args.paired_bs, args.paired_ar, args.paired_bs_n, args.paired_ar_n)
    if args.baseline is None and any(paired_options):
        parser.error("--paired-bs and --paired-ar compare two systems: add --baseline FILE")
    if args.metrics and "bleu" not in args.metrics and args.length_buckets:
        parser.error("--length-buckets divides BLEU: add bleu to -m")
    sources = (args.src, args.generate_output, args.test_set)
    if args.length_buckets and sources == (None, None, None):
        parser.error("--length-buckets needs the source text: add --src FILE")
    if args.generate_output is None and args.input == "-" and sys.stdin.isatty():
        parser.error("no translations: give -i FILE or --generate-output FILE")
    if args.metrics and args.language_pair is None and set(args.metrics) & set(TOKENIZED):
        parser.error(f"-m {' '.join(args.metrics)}: tokenized BLEU needs -l SRC-TGT")
    if args.json is not None and not args.json.resolve().parent.is_dir():
        parser.error(f"--json {args.json}: there is no folder {args.json.parent}")
    return args


def _borders(text: str) -> list[int]:
    try:
        borders = [int(border) for border in text.split(",")]
    except ValueError:
        borders = []
    if not borders or borders[0] < 1 or borders != sorted(set(borders)):
        raise argparse.ArgumentTypeError(f"expected rising positive numbers, got {text!r}")
    return borders


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> Report:
    """Read, check and score.

    Raises:
        InputError: a sentence for the user.
    """
    cleaning = Cleaning(args.remove_bpe, args.detokenize, args.force)
    notes: list[str] = []
    output = None
    if args.generate_output is not None:
        output = read_run(args.generate_output, cleaning)
        system = cleaning.plain(output.hypotheses)
    else:
        system = cleaning.plain(_read(args.input))
    if not system.lines:
        raise InputError(f"{system.origin} is empty: there is nothing to score")

    source, references = read_references(args, output, cleaning)
    if output is not None and args.ref is None and args.test_set is None:
        notes.append(
            "the references are fairseq's T- lines, put together from subwords; give the raw "
            "references with --ref for a score that others can reproduce"
        )
    for reference in references:
        _check_counts(system, reference, args.test_set)
    if args.force:
        notes.append("--force: the text was scored without checking that it is plain")
    if unknown := sum("<unk>" in line for line in system.lines):
        notes.append(f"{unknown} translations contain <unk>")

    language = None if args.language_pair is None else args.language_pair.split("-")[1]
    metrics = list(dict.fromkeys(args.metrics or KINDS))
    if args.metrics is None and language not in moses_languages():
        metrics = [name for name in KINDS if name not in TOKENIZED]
        notes.append(
            "no tokenized BLEU: it needs the target language, give -l SRC-TGT"
            if language is None
            else f"no tokenized BLEU: Moses has no rules for the language {language!r}"
        )
    baseline, test, samples = None, None, None
    if args.baseline is not None:
        baseline = read_baseline(args, system, cleaning)
        test = "ar" if args.paired_ar else "bs"
        samples = getattr(args, f"paired_{test}_n") or SAMPLES[test]

    streams = [reference.lines for reference in references]
    measures = [Measure(name, streams, language) for name in metrics]
    by_length = []
    if source is not None:
        _check_counts(system, source, args.test_set)
        if "bleu" in metrics:
            by_length = length_scores(
                system.lines,
                streams,
                source.lines,
                args.length_buckets or _borders(BUCKETS),
                language,
            )
    elif args.metrics is None:
        notes.append("no BLEU by source length: give the source text with --src FILE")
    significance = []
    if baseline is not None and test is not None and samples is not None:
        significance = [m.compare(baseline.lines, system.lines, test, samples) for m in measures]

    return Report(
        system=system.origin,
        test_set=args.test_set,
        language_pair=args.language_pair,
        references=[reference.origin for reference in references],
        sentences=len(system.lines),
        remove_bpe=args.remove_bpe,
        detokenize=args.detokenize,
        forced=args.force,
        scores=[measure.score(system.lines) for measure in measures],
        source=source.origin if source is not None and by_length else None,
        by_source_length=by_length,
        baseline=args.baseline,
        test=test,
        samples=samples,
        significance=significance,
        notes=notes,
        versions={
            "python": platform.python_version(),
            "sacrebleu": sacrebleu.__version__,
            "sacremoses": sacremoses.__version__,
        },
    )


def read_run(path: str, cleaning: Cleaning) -> GenerateOutput:
    """Read the output of ``fairseq-generate`` and check that nothing is done to it twice.

    Raises:
        InputError: naming the file and what to do.
    """
    output = read_generate_output(path)
    if output.is_run_together and not cleaning.force:
        raise InputError(
            f"{output.hypotheses.origin} have no blanks between words: fairseq-generate removed "
            f"the subwords twice; give it --remove-bpe or --bpe, not both (or insist with --force)"
        )
    if output.is_detokenized and cleaning.detokenize is not None and not cleaning.force:
        raise InputError(
            f"{output.hypotheses.origin} were detokenized by fairseq: drop --detokenize"
        )
    return output


def read_baseline(args: argparse.Namespace, system: Sentences, cleaning: Cleaning) -> Sentences:
    """Read the other system as the system itself was read.

    Raises:
        InputError: if it is not another translation of the same sentences.
    """
    if args.generate_output is not None:
        baseline = cleaning.plain(read_run(args.baseline, cleaning).hypotheses)
    else:
        baseline = cleaning.plain(_read(args.baseline))
    _check_counts(system, baseline, None)
    if baseline.lines == system.lines:
        raise InputError(
            f"{system.origin} and {baseline.origin} hold the same translations: give --baseline "
            f"the output of another system"
        )
    return baseline


def read_references(
    args: argparse.Namespace, output: GenerateOutput | None, cleaning: Cleaning
) -> tuple[Sentences | None, list[Sentences]]:
    """Return the source text, if there is one, and one or more references.

    Raises:
        InputError: if T- lines would have to serve as references but cannot.
    """
    source = None
    if args.test_set is not None:
        from resmlp_mt.scoring.testsets import load_test_set

        source, references = load_test_set(args.test_set, args.language_pair)
    elif args.ref is not None:
        references = [_read(path) for path in args.ref]
        for reference in references:
            cleaning.check(reference, "give the raw reference", "give the raw reference")
    else:
        assert output is not None  # parse_args saw to it
        if output.targets is None:
            raise InputError(f"{args.generate_output} has no T- lines: give --ref FILE")
        references = [cleaning.plain(output.targets)]
        for index, line in enumerate(references[0].lines):
            if "<unk>" in line:
                raise InputError(
                    f"{references[0].place(index)} contains <unk>, which is not the reference: "
                    f"give the raw reference with --ref FILE"
                )
    if args.src is not None:
        source = _read(args.src)
    elif source is None and output is not None and output.sources is not None:
        source = cleaning.joined(output.sources)
    return source, references


def _read(path: str) -> Sentences:
    return Sentences(read_lines(path), "<stdin>" if path == "-" else path)


def _check_counts(system: Sentences, other: Sentences, test_set: str | None) -> None:
    if len(system.lines) == len(other.lines):
        return
    remedy = "give files that belong together"
    if test_set is not None:
        remedy = f"give the whole translation of {test_set}"
        if test_set.startswith("wmt14"):
            remedy += " (newstest2014 is wmt14/full; wmt14 is a part of it)"
    raise InputError(
        f"{system.origin} has {len(system.lines)} sentences, but {other.origin} has "
        f"{len(other.lines)}: {remedy}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 1 if the input cannot be scored."""
    args = parse_args(argv)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` is no error
    if not args.quiet:
        logging.basicConfig(level=logging.INFO, format="sacreBLEU: %(message)s")
    try:
        report = run(args)
    except InputError as error:
        print(f"python -m resmlp_mt.score: error: {error}", file=sys.stderr)
        return 1
    failure = None
    if args.json is not None:
        try:
            write_json(report, args.json)
        except OSError as error:
            failure = f"--json {args.json} cannot be written ({error.strerror or error})"
    print(report.text(args.width, args.quiet), flush=True)
    if failure is not None:
        print(f"python -m resmlp_mt.score: error: {failure}: choose another place", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
