"""Writes `manifest.json`: inputs, outputs, options, and how many pairs each step kept."""

import platform
import unicodedata
from collections.abc import Mapping, Set
from importlib.metadata import version
from pathlib import Path
from typing import Any

from resmlp_mt.errors import UserError
from resmlp_mt.preparation.corpus import Corpus
from resmlp_mt.preparation.options import Options
from resmlp_mt.preparation.steps import Record, read_json, write_json

PACKAGES = ("numpy", "sacremoses", "sentencepiece")

NOT_RECORDED = ("output", "from_dir", "jobs", "dry_run", "corpus")
"""Options that do not change a byte of the result."""

CORPUS = ("corpus", "source_lang", "target_lang")
"""Entries that say which corpus was prepared."""

CLEANED = ".steps/cleaned.json"
"""In the folder of a manifest: these entries and the inputs, as soon as the text is cleaned."""


def versions(*names: str) -> dict[str, str]:
    """Versions that the result depends on, or some of them.

    "unicode" is the version of Python's NFC tables.
    """
    found = {name: version(name) for name in PACKAGES}
    found |= {"python": platform.python_version(), "unicode": unicodedata.unidata_version}
    return {name: found[name] for name in names or found}


def check_is_of(path: Path, corpus: Corpus) -> None:
    """Refuse a manifest of other data, whose model and dictionaries a run would remove.

    Raises:
        UserError: if the file is the manifest of another corpus or of other languages.
    """
    content = _read(path)
    found = tuple(str(content[key]) for key in CORPUS if key in content)
    if len(found) == len(CORPUS) and found != (corpus.name, corpus.source, corpus.target):
        raise UserError(
            "{} holds {} ({} to {}): choose another --output, or delete it first.".format(
                path.parent, *found
            )
        )


def check_text(path: Path, training: Set[str]) -> None:
    """Refuse a manifest of a corpus of the same name and languages, made from other training text.

    One training file is enough: whoever repairs one language keeps the other. The rest is not: two
    corpora often have one validation set.

    Args:
        path: of the manifest.
        training: SHA-256 of the files with training text.

    Raises:
        UserError: if the manifest has none of them.
    """
    try:
        before = {facts["sha256"] for facts in _read(path)["inputs"].values()}
    except (KeyError, TypeError, AttributeError):
        return  # none, or another tool's
    if before and before.isdisjoint(training):
        raise UserError(
            f"{path.parent} holds data made from other training files: choose "
            "another --output, or delete it first."
        )


def _read(path: Path) -> dict[str, Any]:
    """A manifest, or what a run that was killed before it has left; empty if there is neither."""
    return read_json(path if path.exists() else path.parent / CLEANED)


def record_cleaned(path: Path, corpus: Corpus, inputs: Mapping[str, Mapping[str, Any]]) -> None:
    """Write :data:`CLEANED`, for the checks of a run after a killed one.

    Args:
        path: of the manifest.
        corpus, inputs: as in `build`.
    """
    content = dict(zip(CORPUS, (corpus.name, corpus.source, corpus.target), strict=True))
    write_json(path.parent / CLEANED, content | {"inputs": inputs})


def build(
    corpus: Corpus,
    args: Options,
    inputs: Mapping[str, Mapping[str, Any]],
    cleaned: Record,
    model: Record,
    binarized: Record,
) -> dict[str, Any]:
    """The manifest. It has no times, paths or number of processes: equal runs give equal bytes.

    Args:
        corpus: what was prepared.
        args: the command line.
        inputs: size and SHA-256 of every input file, by name.
        cleaned: record of the cleaning, with the pairs of each split and of each filter.
        model: record of the subword model.
        binarized: record of the binary files, with their tokens.
    """
    options = {name: value for name, value in vars(args).items() if name not in NOT_RECORDED}
    options["character_coverage"] = args.character_coverage or corpus.character_coverage
    records = (cleaned, model, binarized)
    return {
        "corpus": corpus.name,
        "source_lang": corpus.source,
        "target_lang": corpus.target,
        "licence": corpus.licence,
        "citation": corpus.citation,
        "options": options,
        "versions": versions(),
        "inputs": inputs,
        "splits": cleaned["facts"],
        "dictionary_entries": binarized["facts"]["entries"],
        "tokens": binarized["facts"]["tokens"],
        "outputs": {name: facts for record in records for name, facts in record["outputs"].items()},
    }


def summary(content: Mapping[str, Any]) -> str:
    """Kept and dropped pairs, as text for the user."""
    train = content["splits"]["train"]
    lines = [f"training pairs read{train['read']:>16,}"]
    for step in train["steps"]:
        if step["step"] == "normalize":
            lines.append(f"  changed by normalisation{step['changed']:>11,}")
        elif step["step"] == "concatenate":
            lines.append(f"  joined to longer ones{step['joined']:>14,}")
        else:
            lines.append(f"  dropped: {step['step']:<14}{step['dropped']:>12,}")
    lines.append(f"training pairs kept{train['pairs']:>16,}")
    for split, facts in content["splits"].items():
        for kind, count in facts.get("left_out", {}).items():
            lines.append(f"{split}: {count:,} {kind} were left out of the TMX")
    for split, facts in content["splits"].items():
        if split != "train":
            name = "" if facts["name"] == split else f" ({facts['name']})"
            lines.append(f"{split} pairs{facts['pairs']:>{29 - len(split)},}{name}")
    lines.append(f"dictionary entries{content['dictionary_entries']:>17,}")
    for name, facts in content["tokens"].items():
        if facts["unknown"]:
            share = 1000 * facts["unknown"] / facts["pieces"]
            lines.append(f"{name}: {share:.3f} per mille of the pieces are unknown")
    return "\n".join(lines)
