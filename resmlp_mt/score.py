"""``python -m resmlp_mt.score``: every kind of BLEU, chrF and TER, each with its signature.

    python -m resmlp_mt.score --generate-output gen.txt --ref test.de -l en-de
    python -m resmlp_mt.score -i test.hyp.de --ref test.de --src test.en -l en-de
    python -m resmlp_mt.score -i newstest2014.hyp.de -t wmt14/full -l en-de

Options have sacreBLEU's names where it has them. docs/scores.md explains which BLEU is which.
"""

import logging
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from resmlp_mt.command_line import command
from resmlp_mt.errors import UserError
from resmlp_mt.files import check_outputs, check_standard_output, write_json
from resmlp_mt.scoring.generate_output import LINE, GenerateOutput, read_generate_output
from resmlp_mt.scoring.lines import Sentences, read_lines
from resmlp_mt.scoring.measures import KINDS, TOKENIZED, LengthScore, Measure, length_scores
from resmlp_mt.scoring.options import BUCKETS, SAMPLES, Options, borders, parse_args
from resmlp_mt.scoring.report import Report
from resmlp_mt.text import normalize
from resmlp_mt.unpacking import other_name

UNKNOWN = ("<unk>", "\u2047")
"""How an unknown word is printed; most sentencepiece models print the second."""

LEAST_SHARE = 0.02
"""Share of references that are not normalised from which scores are noticeably too low."""

MOST_SHARE = 0.1
"""The system's share of such lines, as a part of the references', if the system is normalised."""

RECORDS = {
    "lines of fairseq-generate: give them with --generate-output, or their text alone": LINE,
    "lines of JSON: extract the translations from them": re.compile(r'\{\s*"\w+"\s*:'),
    "columns between tabs: cut one of them out, cut -f N": re.compile(r"[^\t]*\w[^\t]*\t\W*\w"),
    "segments of SGML or XML: take their text out": re.compile(
        r"\s*</?(seg|hl|p|src|ref|hyp|tuv?|doc|[a-z]+set|body|header|\?xml)\b", re.IGNORECASE
    ),
}
"""What stands in files in place of text, and what to do; each with the beginning of its lines."""


class Texts(NamedTuple):
    """The texts to score, read and checked.

    Attributes:
        system, references, source: all of one length; ``source`` is None if there is none.
        notes: sentences that a reader of the numbers needs to know.
    """

    system: Sentences
    references: list[Sentences]
    source: Sentences | None
    notes: list[str]

    @property
    def streams(self) -> list[list[str]]:
        return [reference.lines for reference in self.references]


def read_texts(options: Options) -> Texts:
    """Read and check system, references and source.

    Raises:
        UserError: naming the file and what to do.
    """
    notes: list[str] = []
    system, output = read_system(options, options.system)
    if not system.lines:
        raise UserError(f"{system.origin} is empty: there is nothing to score")
    source, references = read_references(options, output)
    if output is not None and options.references is None and options.test_set is None:
        notes.append(
            "the references are fairseq's T- lines, joined from subwords; give the raw "
            "references with --ref for a score that others can reproduce"
        )
    for other in [*references, *([] if source is None else [source])]:
        _check_counts(system, other, options.test_set)
    if options.force:
        notes.append("--force: the text was scored without checking that it is plain")
    if unknown := sum(any(sign in line for sign in UNKNOWN) for line in system.lines):
        notes.append(f"{unknown} translations contain {' or '.join(UNKNOWN)}")
    lines = [line for reference in references for line in reference.lines]
    count = _not_normalised(lines)
    own = _not_normalised(system.lines) / len(system.lines)
    if count > LEAST_SHARE * len(lines) and own < MOST_SHARE * count / len(lines):
        notes.append(
            f"{count} references have letters or signs that normalised translations cannot have: "
            "scores are too low (docs/scores.md)"
        )
    return Texts(system, references, source, notes)


def _not_normalised(lines: Sequence[str]) -> int:
    """The number of lines that :func:`normalize` changes, white space apart."""
    return sum(normalize(line) != " ".join(line.split()) for line in lines)


def measures_of(options: Options, texts: Texts) -> list[Measure]:
    """The measures that were asked for, else all that can be computed and differ.

    Raises:
        UserError: if a measure that was asked for cannot be computed.
    """
    # its tables are slow to load
    from resmlp_mt.scoring.languages import language_pair, script_without_spaces

    language = None if options.language_pair is None else language_pair(options.language_pair)[1]
    default = ["bleu"] if options.sentence_level else list(KINDS)
    names = list(dict.fromkeys(options.metrics or default))
    is_chosen = options.metrics is not None or options.sentence_level
    if not is_chosen and language is None:
        names = [name for name in names if name not in TOKENIZED]
        texts.notes.append("no tokenized BLEU: it needs the target language, give -l SRC-TGT")
    measures: list[Measure] = []
    for name in names:
        try:
            measure = Measure(name, texts.streams, language, options.of_metrics, options.short)
        except UserError as error:
            if is_chosen:
                raise
            label = "tokenized BLEU" if name in TOKENIZED else KINDS[name].metric.upper()
            note = f"no {label}: {error}"
            if note not in texts.notes:
                texts.notes.append(note)
            continue
        same = [
            m.metric for m in measures if not is_chosen and measure.equals(m, texts.system.lines)
        ]
        if same:
            texts.notes.append(f"{name} is left out: it equals {same[0]} on this text")
        else:
            measures.append(measure)
    script = script_without_spaces(texts.streams)
    if script is not None and any(each.metric == "chrf++" for each in measures):
        texts.notes.append(
            f"chrF2++ counts words between spaces, of which text in {script} script has none: "
            "prefer chrF2"
        )
    return measures


def run(options: Options) -> Report:
    """Read, check and score.

    Raises:
        UserError: a sentence for the user.
    """
    import sacrebleu
    import sacremoses

    texts = read_texts(options)
    measures = measures_of(options, texts)
    system, notes = texts.system, texts.notes
    significance, test, samples = [], None, None
    if options.baseline is not None:
        baseline = read_baseline(options, options.baseline, system)
        test = "ar" if options.paired_ar else "bs"
        samples = getattr(options, f"paired_{test}_n") or SAMPLES[test]
        significance = [m.compare(baseline.lines, system.lines, test, samples) for m in measures]
    confidence = (options.confidence_n or SAMPLES["bs"]) if options.confidence else 1
    return Report(
        system=system.origin,
        test_set=options.test_set,
        language_pair=options.language_pair,
        references=[reference.origin for reference in texts.references],
        sentences=len(system.lines),
        remove_bpe=options.remove_bpe,
        detokenize=options.detokenize,
        forced=options.force,
        scores=[measure.score(system.lines, confidence) for measure in measures],
        source=None if texts.source is None else texts.source.origin,
        by_source_length=by_source_length(options, texts, measures),
        baseline=options.baseline,
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


def by_source_length(options: Options, texts: Texts, measures: list[Measure]) -> list[LengthScore]:
    """BLEU by source length, if there are a source and more than one bucket."""
    bleu = [measure for measure in measures if measure.metric == "bleu"]
    if not bleu:
        return []
    if texts.source is None:
        if options.metrics is None:
            texts.notes.append("no BLEU by source length: give the source text with --src FILE")
        return []
    found = length_scores(
        texts.system.lines,
        texts.streams,
        texts.source.lines,
        options.length_buckets or borders(BUCKETS),
        bleu[0].arguments,
        options.short,
    )
    if len(found) > 1:
        return found
    texts.notes.append(
        f"no BLEU by source length: all sources have {found[0].bucket} tokens; set borders with "
        f"--length-buckets"
    )
    return []


def print_sentence_scores(options: Options) -> None:
    """Print one line per sentence, as ``sacrebleu --sentence-level`` does."""
    texts = read_texts(options)
    (measure,) = measures_of(options, texts)
    for line in measure.sentence_scores(texts.system.lines, options.width):
        print(line)
    if not options.quiet:
        for note in texts.notes:
            print(f"note: {note}", file=sys.stderr)


def read_system(options: Options, path: str) -> tuple[Sentences, GenerateOutput | None]:
    """The plain translations of a system or baseline, and the output of fairseq-generate, if it is.

    Raises:
        UserError: naming the file and what to do; also if something would be cleaned twice.
    """
    cleaning = options.cleaning
    if options.generate_output is None:
        return cleaning.plain(_read(path, options.force)), None
    output = read_generate_output(path)
    if output.is_run_together and not options.force:
        raise UserError(
            f"{output.hypotheses.origin} have no spaces between words: fairseq-generate removed "
            f"the subwords twice; give it --remove-bpe or --bpe, not both (or insist with --force)"
        )
    if output.is_detokenized and options.detokenize is not None and not options.force:
        raise UserError(
            f"{output.hypotheses.origin} were detokenized by fairseq: drop --detokenize"
        )
    return cleaning.plain(output.hypotheses), output


def read_baseline(options: Options, path: str, system: Sentences) -> Sentences:
    """Read the baseline in the same way as the system.

    Raises:
        UserError: if it is not another translation of the same sentences.
    """
    baseline, _ = read_system(options, path)
    _check_counts(system, baseline, None)
    if baseline.lines == system.lines:
        raise UserError(
            f"{system.origin} and {baseline.origin} hold the same translations: give --baseline "
            f"the output of another system"
        )
    return baseline


def read_references(
    options: Options, output: GenerateOutput | None
) -> tuple[Sentences | None, list[Sentences]]:
    """Return the source text, if there is one, and one or more references.

    Raises:
        UserError: if T- lines would have to serve as references but cannot.
    """
    source, cleaning = None, options.cleaning
    if options.test_set is not None:
        from resmlp_mt.scoring.downloads import load_test_set

        assert options.language_pair is not None  # the options were checked
        source, references = load_test_set(options.test_set, options.language_pair)
    elif options.references is not None:
        references = [_read(path, options.force) for path in options.references]
        for reference in references:
            cleaning.check(reference, "give the raw reference", "give the raw reference")
    else:
        assert output is not None
        if output.targets is None:
            raise UserError(f"{options.generate_output} has no T- lines: give --ref FILE")
        references = [cleaning.plain(output.targets)]
        for index, line in enumerate(references[0].lines):
            if "<unk>" in line:
                raise UserError(
                    f"{references[0].place(index)} contains <unk>, which is not the reference: "
                    f"give the raw reference with --ref FILE"
                )
    if options.src is not None:
        source = _read(options.src, options.force)
    elif source is None and output is not None and output.sources is not None:
        source = cleaning.joined(output.sources)
    return source, references


def _read(path: str, is_forced: bool) -> Sentences:
    """The lines of a file.

    Raises:
        UserError: if its name is not that of a text, or most lines are records, unless forced.
    """
    if (what := other_name(Path(path))) and not is_forced:
        raise UserError(f"{path} {what}, or insist with --force")
    text = Sentences(read_lines(path), "<stdin>" if path == "-" else path)
    for what, pattern in RECORDS.items():
        found = sum(pattern.match(line) is not None for line in text.lines)
        if 2 * found > len(text.lines) and not is_forced:
            raise UserError(f"{text.origin} holds {what}, or insist with --force")
    return text


def _check_counts(system: Sentences, other: Sentences, test_set: str | None) -> None:
    if len(system.lines) == len(other.lines):
        return
    remedy = "give files that belong together"
    if test_set is not None:
        remedy = f"give the whole translation of {test_set}"
        if test_set.startswith("wmt14"):
            remedy += " (newstest2014 is wmt14/full; wmt14 is a part of it)"
    raise UserError(
        f"{system.origin} has {len(system.lines)} sentences, but {other.origin} has "
        f"{len(other.lines)}: {remedy}"
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    check_standard_output(options.json, "--json")
    check_outputs(("--json", options.json))
    if not options.quiet:
        logging.basicConfig(level=logging.INFO, format="sacreBLEU: %(message)s")
    if options.sentence_level:
        print_sentence_scores(options)
        return
    report = run(options)
    print(report.text(options.width, options.quiet))
    if options.json is not None:
        write_json(options.json, asdict(report), "--json")


if __name__ == "__main__":
    main()
