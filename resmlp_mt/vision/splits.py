"""The names of splits in folders, archives and shards, in upper or lower case."""

import re
from pathlib import Path

from resmlp_mt.errors import UserError
from resmlp_mt.vision.images import is_hidden

#: as in timm
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "eval", "evaluation"),
}


def names_of(split: str) -> tuple[str, ...]:
    """The usual names of a split, in lower case."""
    return SPLITS.get(split, (split.lower(),))


def usual_name(split: str) -> str:
    """ "train" or "val" for every other name of the two; another split as it is."""
    return next((own for own, names in SPLITS.items() if split.lower() in names), split)


def mentions(name: str, split: str) -> bool:
    """Whether a name has the split as a word: train-interval-0.tar is for training alone."""
    words = "|".join(map(re.escape, names_of(split)))
    return re.search(rf"(?<![a-z])(?:{words})(?![a-z])", name, re.I) is not None


def find_split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split, or None.

    Raises:
        UserError: if there are several.
    """
    found = {p.resolve(): p for p in _folders(root) if p.name.lower() in names_of(split)}
    if len(found) > 1:
        several = " and ".join(path.name for path in found.values())
        raise UserError(f"--data: {root} has {several}: leave one of them for {split}.")
    return next(iter(found.values()), None)


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split.

    Raises:
        UserError: if there is none, or there are several.
    """
    found = find_split_folder(root, split)
    if found is not None:
        return found
    names = names_of(split)
    also = f" (or {', '.join(names[1:])})" if names[1:] else ""
    others = ", ".join(path.name for path in _folders(root)[:5])
    raise UserError(
        f"--data: there is no folder {root / split}{also}; expected {split}/CLASS/IMAGE in {root}"
        f"{f', which has {others}' if others else ''}."
    )


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(p for p in root.iterdir() if p.is_dir() and not is_hidden(p.name))
    except OSError:  # there is no such folder, or it may not be read
        return []
