"""`manifest.json`: what was made from what, how, and how many pairs each step kept."""

from __future__ import annotations

import argparse
import functools
import platform
import unicodedata
from collections.abc import Iterable, Mapping
from importlib.metadata import packages_distributions, version
from typing import Any

from corpus import Corpus
from steps import Record

PACKAGES = ("fairseq", "numpy", "sacremoses", "sentencepiece")

NOT_RECORDED = ("out", "from_dir", "jobs", "dry_run", "corpus")
"""Options that do not change a byte of the result."""


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what decides the result; "unicode" is the one of Python's NFC tables."""
    distributions = packages_distributions()
    found = {name: version(distributions[name][0]) for name in PACKAGES}
    return {
        **found,
        "python": platform.python_version(),
        "unicode": unicodedata.unidata_version,
    }


def build(
    corpus: Corpus,
    args: argparse.Namespace,
    inputs: Mapping[str, Mapping[str, Any]],
    splits: Mapping[str, Any],
    dictionary_entries: int,
    records: Iterable[Record],
) -> dict[str, Any]:
    """The manifest. It has no times, paths or number of processes: equal runs give equal bytes.

    Args:
        corpus: what was prepared.
        args: the command line.
        inputs: size and SHA-256 of every input file, by name.
        splits: pairs of each split, and of each cleaning step.
        dictionary_entries: lines of the fairseq dictionary.
        records: records of the steps; their outputs are listed.
    """
    options = {name: value for name, value in vars(args).items() if name not in NOT_RECORDED}
    options["character_coverage"] = args.character_coverage or corpus.character_coverage
    return {
        "corpus": corpus.name,
        "source_lang": corpus.source,
        "target_lang": corpus.target,
        "licence": corpus.licence,
        "citation": corpus.citation,
        "options": options,
        "versions": versions(),
        "inputs": inputs,
        "splits": splits,
        "dictionary_entries": dictionary_entries,
        "outputs": {name: facts for record in records for name, facts in record["outputs"].items()},
    }
