"""The options of a preparation.

Only what `--help` needs is imported here, so that it answers at once.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resmlp_mt.command_line import Parser, flag, option, switch
from resmlp_mt.machine import usable_cores
from resmlp_mt.option_types import POSITIVE, PROCESSES, SHARE, number
from resmlp_mt.preparation import corpus


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


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """Corpus."""

    corpus: str = option(
        ..., "corpus", type=_corpus, metavar="CORPUS",
        help=f"{', '.join(corpus.names())}; the path of a corpus file, NAME.yaml; or local",
    )  # fmt: skip
    output: Path = option(..., metavar="DIR", help="folder for results")
    from_dir: Path | None = option(
        None, metavar="DIR",
        help="local: the folder with train.SRC and train.TGT, valid.*, test*.*; "
        "else: a folder with archives that you have fetched",
    )  # fmt: skip
    src: str | None = option(
        None, type=_language, metavar="LANG", help="source language (local only)"
    )
    tgt: str | None = option(
        None, type=_language, metavar="LANG", help="target language (local only)"
    )
    dry_run: bool = switch("print what would be done")
    jobs: int = option(usable_cores(), type=PROCESSES, help="processes")
    max_pairs: int | None = option(
        None, type=POSITIVE,
        help="read only N training pairs, an equal share of each part, for a quick trial",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CleaningOptions:
    """Cleaning."""

    tokenizer: str = option(
        "none",
        choices=["none", "moses"],
        help="moses: tokenize as fairseq's --tokenizer moses does",
    )
    normalize_punctuation: bool = switch("Moses punctuation normalisation")
    max_length: int = option(250, type=POSITIVE, help="largest number of words in a sentence")
    max_ratio: float = option(
        3.0, type=number(float, least=1), help="largest ratio of the two sides' words"
    )
    concatenate: int = option(
        1, type=POSITIVE,
        help="join N neighbouring pairs to one, for longer training sentences (default: off)",
    )  # fmt: skip
    concatenate_share: float = option(
        0.5, type=SHARE, help="share of the training set that --concatenate joins"
    )


@dataclass(frozen=True, kw_only=True)
class SubwordOptions:
    """Subwords."""

    vocab_size: int = option(32000, type=POSITIVE, help="size of the joint dictionary")
    subword_type: str = option("bpe", choices=["bpe", "unigram"], help="kind of the subwords")
    character_coverage: float | None = option(
        None, type=SHARE,
        help="share of the characters that get a piece (default: what the corpus file says, or 1)",
    )  # fmt: skip
    input_sentence_size: int = option(
        2_000_000, type=POSITIVE, help="largest number of sentences to train the subword model on"
    )
    samples: int = option(
        0, type=POSITIVE, metavar="K",
        help="K copies of the training set in differently sampled subwords (BPE-dropout), "
        "for fairseq-train OUT/bin:OUT/bin2:..., which takes one after the other, epoch by epoch",
    )  # fmt: skip
    sentencepiece_alpha: float = option(
        0.1, type=SHARE,
        help="of --samples: share of the merges left out (bpe), or smoothing of the "
        "probabilities (unigram)",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options(SubwordOptions, CleaningOptions, CorpusOptions):
    """All options of a preparation."""


def parse_args(argv: Sequence[str] | None = None) -> Options:
    """Parse the command line; exits with status 2 on a wrong one."""
    parser = Parser(
        "resmlp_mt.prepare",
        "Fetch, clean, split into subwords and binarise a parallel corpus for fairseq.",
        needs=["yaml", "tqdm"],
    )
    parser.add_options(Options)
    parser.refuse("fairseq-preprocess", "fairseq-preprocess")
    options = Options(**vars(parser.parse_args(argv)))
    parser.set_defaults(sentencepiece_alpha=None, concatenate_share=None)
    given = parser.parse_args(argv)
    if given.sentencepiece_alpha is not None and not options.samples:
        parser.error("--sentencepiece-alpha is for --samples: add it")
    if given.concatenate_share is not None and options.concatenate == 1:
        parser.error("--concatenate-share is for --concatenate N, with N above 1: add it")
    if options.concatenate > options.max_length:
        parser.error(
            f"--concatenate {options.concatenate} is above --max-length {options.max_length}: "
            "nothing could be joined, give it fewer"
        )
    if options.corpus == "local":
        for name in ("from_dir", "src", "tgt"):
            if getattr(options, name) is None:
                parser.error(f"local needs {flag(name)}")
        if not Path(str(options.from_dir)).is_dir():
            parser.error(f"--from-dir {options.from_dir} is not a folder")
        source, target = str(options.src), str(options.tgt)
        first, _, second = source.rpartition("-")
        if first and second == target:
            parser.error(f"--src {source} names two languages: give --src {first}")
        if corpus.file_code(source) == corpus.file_code(target):
            parser.error(f"--src and --tgt are both {source}")
    elif options.src or options.tgt:
        parser.error(f"--src and --tgt are for local; {options.corpus} has its own languages")
    return options
