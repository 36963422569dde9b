"""``python -m resmlp_mt.translate``: raw text in, raw text out, without fairseq's generator.

    echo "Where is the station?" | python -m resmlp_mt.translate
    python -m resmlp_mt.translate model --input text.en > text.de
    echo "A dog runs." | python -m resmlp_mt.translate checkpoint_best.pt \\
        --data data-bin --sentencepiece-model spm.model --nbest 3

MODEL is a folder from ``python -m resmlp_mt.export``, or a checkpoint (which loads fairseq).
Without MODEL, the English-German model of the package translates. The options are those
of fairseq-interactive. Line n of the output is the translation of line n; with --nbest or
--print-scores lines are "D-<line>\\t<score>\\t<text>" as in fairseq, lines counted from 0 and
scores to base 2. A pipe gets each line back at once; waiting lines are batched.
"""

import gzip
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from resmlp_mt.command_line import Parser, command, flag, option, switch
from resmlp_mt.engine.options import BatchOptions, SearchOptions
from resmlp_mt.errors import UserError, reason
from resmlp_mt.files import check_outputs, check_standard_output, expanded, output_file
from resmlp_mt.machine import threads_kept
from resmlp_mt.option_types import POSITIVE, PROCESSES
from resmlp_mt.standard_input import check_is_not_output
from resmlp_mt.unpacking import ARCHIVES, PACKED, kind_of, open_input

if TYPE_CHECKING:  # so that --help answers at once
    from resmlp_mt.engine.model_folder import TranslationModel


@dataclass(frozen=True, kw_only=True)
class Options(BatchOptions, SearchOptions):
    """Text and model."""

    model: Path | None = option(
        None, "model", nargs="?", metavar="MODEL",
        help="exported folder or checkpoint (default: en-de, which comes with the package)",
    )  # fmt: skip
    input: str = option("-", metavar="FILE", help="text, also .gz, - for standard input")
    data: Path | None = option(
        None, metavar="DIR", help="dictionaries of a checkpoint (default: the training's)"
    )
    sentencepiece_model: Path | None = option(
        None, metavar="FILE",
        help="subwords of a checkpoint (default: spm.model beside the folder of the dictionaries)",
    )  # fmt: skip
    device: str = option("cpu", metavar="NAME", help="cpu, cuda, cuda:1 ...")
    workers: int = option(
        1, type=PROCESSES, help="batches translated at once; for a file, one per core is fastest"
    )
    threads: int | None = option(
        None, type=PROCESSES,
        help="threads of one product; default: one per core, or one for each of several workers",
    )  # fmt: skip
    buffer_size: int = option(2048, type=POSITIVE, help="most waiting lines to translate together")
    nbest: int = option(1, type=POSITIVE, help="translations of a line; with --sampling, draws")
    print_scores: bool = switch("also print scores, as with --nbest 2")
    output: Path | None = option(None, metavar="FILE", help="also .gz; default: -, standard output")
    split_sentences: bool = switch(
        "a line is text of any number of sentences, translated one by one (extra serve)"
    )
    out_format: str = option(
        "text", choices=("text", "jsonl"),
        help="jsonl: source, translation, score, alignment and n-best in an object a line",
    )  # fmt: skip


def parse_args(argv: Sequence[str] | None) -> Options:
    """Parse the command line; exits with status 2 on a wrong one."""
    parser = Parser("resmlp_mt.translate", "Translate text, one sentence a line.")
    parser.add_options(Options)
    parser.refuse("another program", "translators", "translators-of-one-process")
    options = Options(**vars(parser.parse_args(argv)))
    if options.nbest > options.beam and not options.sampling:
        parser.error(f"--nbest {options.nbest} is above --beam {options.beam}: raise --beam")
    if options.split_sentences and (
        options.nbest > 1 or options.print_scores or options.out_format != "text"
    ):
        parser.error(
            "--split-sentences gives one text for a line, without scores: leave out --nbest, "
            "--print-scores and --out-format"
        )
    if str(options.output) in ("-", "/dev/stdout"):  # opened by its name, it would be emptied first
        options = replace(options, output=None)
    if options.workers > 1 and options.threads is None:
        options = replace(options, threads=1)
    return options


def load(args: Options) -> "TranslationModel":
    """The model that MODEL names, ready to translate."""
    from resmlp_mt.engine import digests, model_folder, pretrained

    try:
        model = pretrained.located(args.model)
    except UserError as error:
        if args.model is None:
            raise
        # the text itself may have been given
        remedy = "; text comes from standard input or from --input FILE."
        raise UserError(f"{error}".rstrip(".") + remedy) from error
    if model.is_dir():
        for name in ("data", "sentencepiece_model"):
            if getattr(args, name) is not None:
                raise UserError(f"{flag(name)} is for checkpoints: {model} has its own.")
        return model_folder.load(model, args.dtype, args.device, args.threads, args.shortlist)
    if not model.is_file():
        raise UserError(
            f"{model} is neither a checkpoint nor a folder written by python -m resmlp_mt.export."
        )
    is_named = model.suffix in (".pt", ".pth")
    beside = (model.parent / name for name in (model_folder.CONFIG, digests.NAME))
    if not is_named and all(path.is_file() for path in beside):
        raise UserError(f"{model} is a file of an exported folder: give that, {model.parent}.")
    if not is_named and not is_checkpoint(model):
        raise UserError(
            f"{model} is text, and MODEL an exported folder or a checkpoint: give it with --input."
        )
    # only here: fairseq takes seconds to import, and exported models do not need it
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    from resmlp_mt.engine import weights
    from resmlp_mt.fairseq_plugin.conversion import load_trained
    from resmlp_mt.model.encoder_decoder import EncoderDecoder
    from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures

    loaded = load_trained(model, args.data, args.sentencepiece_model)
    assert isinstance(loaded.model, EncoderDecoder)
    dtype = args.dtype or "float32"
    loaded.model = weights.prepared(loaded.model, dtype, args.device, args.threads)
    return loaded


def is_checkpoint(path: Path) -> bool:
    """Whether a file is not plain text: PyTorch's files are zip archives or pickles."""
    try:
        with path.open("rb") as file:
            return any(byte < 9 for byte in file.read(1024))
    except OSError:
        return True  # reading it raises an error that says more


@contextmanager
def opened_output(path: Path | None) -> Iterator[TextIO]:
    """The output: standard output, or a file that appears when it is complete.

    Raises:
        UserError: if the file cannot be written.
    """
    if path is not None:
        is_packed = path.suffix.lower() == ".gz"
        with (
            output_file(path, "--output") as partial,
            partial.open("wb") as stream,
            # with neither the temporary name nor the time, so that equal text is an equal file
            gzip.GzipFile("", "wb", fileobj=stream, mtime=0) if is_packed else stream as packed,
            io.TextIOWrapper(packed, encoding="utf-8") as file,
        ):
            yield file
    else:
        yield sys.stdout


@command
@threads_kept()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    check_standard_output(args.output, "--output")
    if args.output is not None and (kind := kind_of(args.output)) in ARCHIVES | PACKED:
        packing = "an archive" if kind in ARCHIVES else "packed"
        raise UserError(f"--output {args.output} is {packing}: name a text file, such as text.gz.")
    source = open_input(args.input)
    check_outputs(("--output", args.output))
    replaced = args.output if args.output is not None and args.output.is_file() else None
    if args.input != "-" and replaced is not None and replaced.samefile(expanded(args.input)):
        raise UserError(f"--output {args.output} is the --input: choose another name.")
    if args.output is None:
        check_is_not_output(source, args.input)

    from resmlp_mt.engine import progress
    from resmlp_mt.engine.doubts import Doubts
    from resmlp_mt.engine.lines import waiting_lines, write_json, write_text
    from resmlp_mt.engine.translator import Translator

    if args.split_sentences:
        from resmlp_mt.engine.sentences import translate_texts
    translator = Translator(
        load(args),
        SearchOptions.of(args),
        args.batch_size,
        args.max_tokens,
        args.shortlist,
        workers=args.workers,
        threads=args.threads or 1,
    )
    doubts = Doubts(translator.loaded)
    is_json = args.out_format == "jsonl"
    has_attention = is_json and translator.has_attention
    is_scored = args.print_scores or args.nbest > 1
    first = first_sentence = 0
    errors: list[OSError] = []
    opened = nullcontext(source) if args.input == "-" else source
    with opened as stream, opened_output(args.output) as file:
        shown = None
        if progress.is_file(stream) and sys.stderr.isatty():
            logging.getLogger(progress.__name__).setLevel(logging.INFO)
            shown = progress.Progress(stream, "sentences" if args.split_sentences else "lines")
            translator.on_batch = shown.add
        for lines in waiting_lines(stream, args.buffer_size, errors):
            if args.split_sentences:
                texts = [line.strip() for line in lines]
                joined, sentences = translate_texts(translator, texts, first_sentence, doubts)
                first_sentence += sentences
                # one line each, whatever else divides lines in the text
                file.writelines(f"{' '.join(text.splitlines())}\n" for text in joined)
            else:
                results = translator.translate(
                    lines,
                    num_hypotheses=args.nbest,
                    return_scores=is_json or is_scored,
                    return_attention=has_attention,
                    first_line=first,
                    doubts=doubts,
                )
                for number, translations in enumerate(results):
                    if is_json:
                        line, pieces = lines[number].strip(), translator.pieces(lines[number])
                        write_json(file, line, pieces, translations, has_attention)
                    else:
                        write_text(file, first + number, translations, is_scored)
            file.flush()
            first += len(lines)
            if shown is not None:
                shown.reach(first_sentence if args.split_sentences else first)
        if shown is not None:
            shown.end()
        doubts.end()
        if errors:
            place = f" after line {first}" if first else ""
            raise UserError(
                f"--input {args.input} cannot be read{place}: {reason(errors[0])}."
            ) from errors[0]
    if translator.failed:
        count = f"{first_sentence} sentences" if args.split_sentences else f"{first} lines"
        raise UserError(
            f"{translator.failed} of {count} have no translation with a finite score "
            "and were left empty: the errors above name them."
        )


if __name__ == "__main__":
    main()
