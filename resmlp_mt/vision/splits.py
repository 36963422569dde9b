"""The names of splits in folders, archives and shards, in upper or lower case."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from resmlp_mt.errors import UserError
from resmlp_mt.files import is_hidden

#: as in timm
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "eval", "evaluation"),
}


def names_of(split: str) -> tuple[str, ...]:
    """A split's name and the usual other ones, in lower case."""
    name = split.lower()
    return tuple(dict.fromkeys((name, *SPLITS.get(usual_name(split), ()))))


def usual_name(split: str) -> str:
    """ "train" or "val" for every other name of the two; another split as it is."""
    return next((own for own, names in SPLITS.items() if split.lower() in names), split)


def mentions(name: str, words: Iterable[str]) -> bool:
    """Whether a name has one of the words: train-interval-0.tar is for training alone."""
    either = "|".join(map(re.escape, words))
    return re.search(rf"(?<![a-z])(?:{either})(?![a-z])", name, re.I) is not None


def find_split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split, or None; one of this very name comes before one of another.

    The split "." is the folder itself, and a path leads into it, as in timm.

    Raises:
        UserError: if there are several.
    """
    if split == ".":
        return root
    if Path(split).name != split and (root / split).is_dir():
        return root / split
    found = {p.resolve(): p for p in _folders(root) if p.name.lower() in names_of(split)}
    name = chosen_name([path.name for path in found.values()], split, f"--data: {root}")
    return None if name is None else root / name


def chosen_name(names: Collection[str], split: str, place: str) -> str | None:
    """Of the names that a place has for a split, the very name or else the only one.

    Raises:
        UserError: if there are several.
    """
    if split in names:
        return split
    if len(names) > 1:
        several = " and ".join(sorted(names))
        raise UserError(f"{place} has {several}: leave one of them for {split}, or name one.")
    return next(iter(names), None)


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split in the folder of all.

    Raises:
        UserError: if there is none, or there are several.
    """
    found = find_split_folder(root, split)
    if found is not None:
        return found
    if root.is_file():
        raise UserError(
            f"--data {root} is a file: give a folder, cifar10-tar FILE for an archive, or wds FILE "
            "for a shard."
        )
    names = names_of(split)
    also = f" (or {', '.join(names[1:])})" if names[1:] else ""
    others = ", ".join(path.name for path in _folders(root)[:5])
    instead = f", which has {others}" if others else ""
    choice = "; other names go to --train-split, --val-split or --split" if others else ""
    if any(root.glob("*.[tT][aA][rR]")):
        choice += f"; shards are given as --data wds {root}"
    raise UserError(
        f"--data: there is no folder {root / split}{also}; expected {split}/CLASS/IMAGE in {root}"
        f"{instead}{choice}."
    )


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(p for p in root.iterdir() if p.is_dir() and not is_hidden(p.name))
    except OSError:  # there is no such folder, or it may not be read
        return []
