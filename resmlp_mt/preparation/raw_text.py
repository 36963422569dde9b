"""Warns of training text that was split into subwords or tokens before."""

from collections.abc import Iterable
from itertools import islice

from resmlp_mt.preparation.corpus import warn
from resmlp_mt.preparation.formats import TextFiles, pairs
from resmlp_mt.text import looks_split, looks_tokenized

LOOKED_AT = 2000  # pairs of each file


def warn_of_split_text(training: Iterable[TextFiles]) -> None:
    """Say which files do not look raw: a model that learns from them expects and writes the same.

    Raises:
        UserError: if a file cannot be read.
    """
    for files in training:
        sides = zip(*islice(pairs(files, LOOKED_AT), LOOKED_AT), strict=True)
        for path, lines in zip((files.source, files.target), sides, strict=False):
            text = [line.decode(errors="replace") for line in lines]
            if shown := looks_split(text) or looks_tokenized(text):
                warn(f"{path} was split before ({shown}): give the raw text")
