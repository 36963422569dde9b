"""Warns of training text that was split into subwords or tokens before."""

from collections.abc import Iterable
from itertools import islice

from resmlp_mt.preparation.corpus import warn
from resmlp_mt.preparation.formats import TextFiles, pairs
from resmlp_mt.text import OTHER_MARKS, SUBWORD_MARK, looks_tokenized

LOOKED_AT = 2000  # pairs of each file
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
            marks = [mark for line in text if (mark := _mark(line))]
            shown = looks_tokenized(text)
            if len(marks) > LEAST_SHARE * len(text):
                shown = (
                    f"{len(marks)} of {len(text)} lines have the marks of subwords, '{marks[0]}'"
                )
            if shown:
                warn(f"{path} was split before ({shown}): give the raw text")


def _mark(line: str) -> str | None:
    """The first mark of subwords in a line; None for what raw lines have, too."""
    if mark := SUBWORD_MARK.search(line):
        return mark.group()
    for tool, pattern in OTHER_MARKS.items():
        marks = pattern.findall(line, 1)  # lines of Markdown begin with ##
        if len(marks) > (tool == "GPT-2"):  # Maltese has single words with this letter
            return str(marks[0])
    return None
