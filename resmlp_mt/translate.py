"""``python -m resmlp_mt.translate``: raw text in, raw text out, without fairseq's generator.

    python -m resmlp_mt.translate model --input text.en > text.de
    echo "A dog runs." | python -m resmlp_mt.translate checkpoint_best.pt \\
        --data data-bin --sentencepiece-model spm.model --nbest 3

MODEL is a folder from ``python -m resmlp_mt.export``, or a checkpoint (which loads fairseq). The
options are those of fairseq-interactive. Line n of the output is the translation of line n; with
--nbest or --print-scores lines are "D-<line>\\t<score>\\t<text>" as in fairseq, lines counted
from 0 and scores to base 2.
"""

import argparse
import itertools
import logging
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from resmlp_mt.command_line import Parser, command
from resmlp_mt.engine.options import DTYPES, SearchOptions
from resmlp_mt.errors import UserError

if TYPE_CHECKING:  # --help answers without what translates
    from resmlp_mt.engine.model_folder import TranslationModel
    from resmlp_mt.engine.translation import Translation

logger = logging.getLogger("resmlp_mt.translate")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 on a wrong one."""
    parser = Parser("resmlp_mt.translate", "Translate text, one sentence a line.")
    parser.add_argument("model", type=Path, metavar="MODEL", help="exported folder or checkpoint")
    parser.add_argument("--input", default="-", metavar="FILE", help="text, - for standard input")
    parser.add_argument("--data", type=Path, metavar="DIR", help="dictionaries of a checkpoint")
    parser.add_argument(
        "--sentencepiece-model",
        type=Path,
        metavar="FILE",
        help="subwords of a checkpoint (default: spm.model beside the folder of the dictionaries)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: as the model was exported")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--threads", type=int, metavar="N", help="default: one per core")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="sentences")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="source tokens in a batch")
    parser.add_argument(
        "--buffer-size",
        type=int,
        metavar="N",
        help="lines to read before translating (default: 1 from a terminal, else 2048)",
    )
    parser.add_argument(
        "--shortlist",
        action="store_true",
        help="choose among the exported shortlist's words: faster, other scores",
    )
    parser.add_argument("--nbest", type=int, default=1, metavar="N", help="translations of a line")
    parser.add_argument("--print-scores", action="store_true", help="lines as with --nbest 2")
    search = parser.add_argument_group("search")
    defaults = SearchOptions()
    search.add_argument("--beam", type=int, default=defaults.beam, metavar="N", help="hypotheses")
    search.add_argument(
        "--lenpen", type=float, default=defaults.lenpen, metavar="X",
        help="power of the length that scores are divided by: more is longer",
    )  # fmt: skip
    search.add_argument("--unnormalized", action="store_true", help="compare sums of scores")
    for option, kind, metavar, text in (
        ("unkpen", float, "X", "what an unknown word costs"),
        ("temperature", float, "X", "what scores are divided by before the softmax"),
        ("min-len", int, "N", "fewest tokens of a translation"),
        ("max-len-a", float, "X", "a in the most tokens, a * source tokens + b"),
        ("max-len-b", int, "N", "b, see there"),
    ):
        default = getattr(defaults, option.replace("-", "_"))
        search.add_argument(f"--{option}", type=kind, default=default, metavar=metavar, help=text)
    args = parser.parse_args(argv)
    for option in ("threads", "batch_size", "max_tokens", "buffer_size", "nbest"):
        value = getattr(args, option)
        if value is not None and value < 1:
            flag = "--" + option.replace("_", "-")
            parser.error(f"{flag} must be at least 1, but is {value}")
    if args.nbest > args.beam:
        parser.error(f"--nbest {args.nbest} is above --beam {args.beam}: raise --beam")
    return args


def load(args: argparse.Namespace) -> "TranslationModel":
    """The model that MODEL names, ready to translate."""
    from resmlp_mt.engine import model_folder

    if args.model.is_dir():
        for option in ("data", "sentencepiece_model"):
            if getattr(args, option) is not None:
                flag = "--" + option.replace("_", "-")
                raise UserError(f"{flag} is for checkpoints: {args.model} has its own.")
        return model_folder.load(args.model, args.dtype, args.device, args.threads)
    if not args.model.is_file():
        raise UserError(
            f"{args.model} is neither a checkpoint nor a folder written by "
            "python -m resmlp_mt.export."
        )
    # fairseq takes seconds to load, and talks meanwhile; exported models do without it
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    from resmlp_mt.engine import weights
    from resmlp_mt.fairseq_plugin.conversion import load_trained
    from resmlp_mt.model.encoder_decoder import EncoderDecoder
    from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures

    trained = load_trained(args.model, args.data, args.sentencepiece_model)
    assert isinstance(trained.model, EncoderDecoder)
    dtype = args.dtype or "float32"
    trained.model = weights.prepared(trained.model, dtype, args.device, args.threads)
    return trained


def read_lines(stream: BinaryIO, errors: list[OSError]) -> Iterator[str]:
    """Lines of UTF-8 text; wrong bytes become U+FFFD, and only a line feed ends a line.

    Where the stream cannot be read any further, the error is put into ``errors``, so that what
    was read can be translated before it is reported.
    """

    def lines() -> Iterator[bytes]:
        try:
            yield from stream
        except OSError as error:
            errors.append(error)

    for number, line in enumerate(lines(), start=1):
        text = line.decode("utf-8", errors="replace")
        if "\ufffd" in text and text.encode() != line:
            logger.error("line %d is not valid UTF-8: its wrong bytes became U+FFFD", number)
        yield text.strip()


def write(first: int, results: "list[list[Translation]]", args: argparse.Namespace) -> None:
    """Print translations; ``first`` is the number of the first line."""
    for number, translations in enumerate(results, start=first):
        for translation in translations[: args.nbest]:
            if args.print_scores or args.nbest > 1:
                score = translation.score / math.log(2)
                print(f"D-{number}\t{score}\t{translation.text}")
            else:
                print(translation.text)
    sys.stdout.flush()


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        stream = sys.stdin.buffer if args.input == "-" else open(args.input, "rb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"--input {args.input} cannot be read: {error.strerror}.") from error
    options = SearchOptions(
        beam=args.beam,
        lenpen=args.lenpen,
        unnormalized=args.unnormalized,
        unkpen=args.unkpen,
        temperature=args.temperature,
        min_len=args.min_len,
        max_len_a=args.max_len_a,
        max_len_b=args.max_len_b,
    )

    from resmlp_mt.engine.translator import Translator

    translator = Translator(load(args), options, args.batch_size, args.max_tokens, args.shortlist)
    buffer_size = args.buffer_size or (1 if stream.isatty() else 2048)
    first = 0
    with stream:
        errors: list[OSError] = []
        lines = read_lines(stream, errors)
        while buffer := list(itertools.islice(lines, buffer_size)):
            results = translator.translate(buffer)
            try:
                write(first, results, args)
            except OSError as error:
                raise UserError(f"standard output cannot be written: {error.strerror}.") from error
            first += len(buffer)
    if errors:
        raise UserError(
            f"--input {args.input} cannot be read behind line {first}: {errors[0].strerror}."
        ) from errors[0]
    if translator.failed:
        raise UserError(
            f"{translator.failed} of {first} lines have no translation of a finite score and were "
            "left empty: the errors above name them."
        )


if __name__ == "__main__":
    main()
