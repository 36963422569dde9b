"""Turns a corpus into binarised data for fairseq, in one command.

    python data_scripts/prepare.py wmt14_en_de --output DIR
    python data_scripts/prepare.py local --from-dir DIR --src en --tgt de --output OUT

This file is the command line; the steps and their order are in pipeline.py.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from resmlp_mt.command_line import PROCESSES, Parser, command, missing, number, whole_number
from resmlp_mt.errors import UserError
from resmlp_mt.machine import usable_cores

try:
    import portalocker

    import corpus
    from binarize import folder_name
    from pipeline import Preparation
except ModuleNotFoundError as error:
    raise missing(error, "data") from error


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; see `--help`."""
    parser = Parser(
        "",
        "Fetch, clean, split into subwords and binarise a parallel corpus for fairseq.",
        prog="prepare.py",
    )
    parser.add_argument("corpus", choices=[*corpus.names(), "local"], help="what to prepare")
    parser.add_argument(
        "--output", "--out", type=Path, required=True, metavar="DIR", help="folder for results"
    )
    parser.add_argument(
        "--from-dir",
        type=Path,
        metavar="DIR",
        help="local: the folder with train.SRC and train.TGT, valid.*, test*.*; "
        "else: a folder with archives that you have fetched",
    )
    parser.add_argument(
        "--src", type=_language, metavar="LANG", help="source language (local only)"
    )
    parser.add_argument(
        "--tgt", type=_language, metavar="LANG", help="target language (local only)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    parser.add_argument(
        "--jobs",
        type=PROCESSES,
        default=usable_cores(),
        metavar="N",
        help="processes",
    )
    parser.add_argument(
        "--max-pairs",
        type=whole_number(1),
        metavar="N",
        help="read only N training pairs, an equal share of each part, for a quick trial",
    )
    cleaning = parser.add_argument_group("cleaning")
    cleaning.add_argument(
        "--tokenizer",
        choices=["none", "moses"],
        default="none",
        help="moses: tokenize as fairseq's --tokenizer moses does",
    )
    cleaning.add_argument(
        "--normalize-punctuation", action="store_true", help="Moses punctuation normalisation"
    )
    cleaning.add_argument(
        "--max-length",
        type=whole_number(1),
        default=250,
        help="largest number of words in a sentence",
    )
    cleaning.add_argument(
        "--max-ratio",
        type=number(float, least=1),
        default=3.0,
        help="largest ratio of the two sides' words",
    )
    cleaning.add_argument(
        "--concatenate",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="join N neighbouring pairs to one, for longer training sentences (default: off)",
    )
    cleaning.add_argument(
        "--concatenate-share",
        type=number(float, above=0, most=1),
        default=0.5,
        metavar="X",
        help="share of the training set that --concatenate joins",
    )
    pieces = parser.add_argument_group("subwords")
    pieces.add_argument(
        "--vocab-size",
        type=whole_number(1),
        default=32000,
        help="size of the joint dictionary",
    )
    pieces.add_argument(
        "--subword-type", choices=["bpe", "unigram"], default="bpe", help="kind of the subwords"
    )
    pieces.add_argument(
        "--character-coverage",
        type=number(float, above=0, most=1),
        help="share of the characters that get a piece (default: what the corpus file says, or 1)",
    )
    pieces.add_argument(
        "--input-sentence-size",
        type=whole_number(1),
        default=2_000_000,
        help="largest number of sentences to train the subword model on",
    )
    pieces.add_argument(
        "--samples",
        type=whole_number(1),
        default=0,
        metavar="K",
        help="K copies of the training set in differently sampled subwords (BPE-dropout), "
        "for fairseq-train OUT/bin:OUT/bin2:..., which takes one after the other, epoch by epoch",
    )
    pieces.add_argument(
        "--sentencepiece-alpha",
        type=number(float, above=0, most=1),
        default=0.1,
        metavar="X",
        help="of --samples: share of the merges left out (bpe), or smoothing of the "
        "probabilities (unigram)",
    )
    args = parser.parse_args(argv)
    if args.corpus == "local":
        for option, value in (
            ("--from-dir", args.from_dir),
            ("--src", args.src),
            ("--tgt", args.tgt),
        ):
            if value is None:
                parser.error(f"local needs {option}")
        first, _, second = args.src.rpartition("-")
        if second == args.tgt:
            parser.error(f"--src {args.src} names two languages: give --src {first}")
        if corpus.file_code(args.src) == corpus.file_code(args.tgt):
            parser.error(f"--src and --tgt are both {args.src}")
    elif args.src or args.tgt:
        parser.error(f"--src and --tgt are for local; {args.corpus} has its own languages")
    return args


def _language(text: str) -> str:
    try:
        corpus.file_code(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = parse_args(argv)
    try:
        preparation = Preparation(args)
        if args.dry_run:
            # `... | head` is not an error.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            print(preparation.plan())
            return 0
        signal.signal(signal.SIGTERM, _terminate)
        with _only_run(args.output):
            preparation.run()
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues from the last finished step", 130)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _fail(
                f"no space left for {args.output} ({error.strerror}): free some and run the same "
                "command again; finished steps are kept"
            )
        return _fail(f"{error.filename or args.output}: {error.strerror or error}")
    folders = ":".join(f"{args.output}/{folder_name(copy)}" for copy in range(max(1, args.samples)))
    print(f"{folders}, {args.output}/spm.model and {args.output}/manifest.json are ready")
    return 0


def _fail(message: str, status: int = 1) -> int:
    print(f"prepare.py: error: {message}", file=sys.stderr)
    return status


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    # Unwinds the stack, so that temporary files are removed and workers end.
    raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def _only_run(out: Path) -> Iterator[None]:
    """Keeps a second run out of the same folder."""
    lock = out / ".steps" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with portalocker.Lock(
            lock,
            flags=portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING,
            fail_when_locked=True,
        ):
            yield
    except portalocker.LockException:
        raise UserError(
            f"another run is using {out}: wait for it or use another --output"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
