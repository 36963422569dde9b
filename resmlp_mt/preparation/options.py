"""The command line of a preparation.

Only what `--help` needs is imported here, so that it answers at once.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from resmlp_mt.command_line import PROCESSES, Parser, number, whole_number
from resmlp_mt.machine import usable_cores
from resmlp_mt.preparation import corpus


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 on a wrong one."""
    parser = Parser(
        "resmlp_mt.prepare",
        "Fetch, clean, split into subwords and binarise a parallel corpus for fairseq.",
        needs=["yaml", "tqdm"],
    )
    parser.add_argument(
        "corpus",
        type=_corpus,
        metavar="CORPUS",
        help=f"{', '.join(corpus.names())}; the path of a corpus file, NAME.yaml; or local",
    )
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
    parser.check_packages()
    return args


def _corpus(text: str) -> str:
    known = [*corpus.names(), "local"]
    if text in known or (text.endswith(".yaml") and Path(text).is_file()):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is not known: choose from {', '.join(known)}, or give the path of a .yaml file"
    )


def _language(text: str) -> str:
    try:
        corpus.file_code(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
