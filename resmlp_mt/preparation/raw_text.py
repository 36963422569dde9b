"""Warns of training text that was split into subwords or tokens before."""

import re
from collections.abc import Iterable
from itertools import islice

from resmlp_mt.preparation.corpus import warn
from resmlp_mt.preparation.formats import TextFiles, pairs
from resmlp_mt.text import SUBWORD_MARK, looks_tokenized

LOOKED_AT = 2000  # pairs of each file
OTHER_MARK = re.compile(
    r"(?<=\s)##(?=\w)"  # WordPiece
    r"|\uffed"  # OpenNMT's Tokenizer
    r"|</w>(?!\S)"  # the first byte-pair encoding
    r"|\u0120(?=\w.*\s\u0120\w)"  # GPT-2; Maltese has single words with this letter
)
LEAST_SHARE = 0.1  # of lines with marks; a few raw lines have them, too


def warn_of_split_text(training: Iterable[TextFiles]) -> None:
    """Say which files do not look raw: a model that learns from them expects and writes the same.

    Raises:
        UserError: if a file cannot be read.
    """
    for files in training:
        sides = zip(*islice(pairs(files, LOOKED_AT), LOOKED_AT), strict=True)
        for path, lines in zip((files.source, files.target), sides, strict=False):
            text = [line.decode(errors="replace") for line in lines]
            marks = [
                mark.group()
                for line in text
                if (mark := SUBWORD_MARK.search(line) or OTHER_MARK.search(line))
            ]
            shown = looks_tokenized(text)
            if len(marks) > LEAST_SHARE * len(text):
                shown = (
                    f"{len(marks)} of {len(text)} lines have the marks of subwords, '{marks[0]}'"
                )
            if shown:
                warn(f"{path} was split before ({shown}): give the raw text")
