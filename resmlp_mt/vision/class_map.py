"""The order of a model's classes: timm's ``--class-map``, and orders that differ."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.vision.libraries import timm

logger = logging.getLogger(__name__)

#: for messages: which classes weights without names are said to have, and how to give others
TAKEN = ", taken for ImageNet's because it has no names of classes,"
ORDERED = "name them in the order of the weights with --class-map FILE"


def read_class_map(path: Path, folders: Iterable[Path] = ()) -> list[str]:
    """The names of a model's outputs in their order.

    Args:
        path: one name a line, as in timm, or JSON: a list, or ``{name: index}``.
        folders: where it may lie if it is not there, as in timm.

    Raises:
        UserError: if it cannot be read, or its names or indices are not complete and different.
    """
    path = next((p for p in (path, *(f / path for f in folders)) if p.exists()), path)
    binary = f"--class-map {path} is not a text in UTF-8: write one name a line, or JSON."
    kinds = OSError, ValueError, RecursionError
    with (
        refused(lambda error: f"--class-map {path} cannot be read: {reason(error)}.", *kinds),
        refused(lambda _: binary, UnicodeDecodeError),  # such as timm's .pkl
    ):
        text = path.read_text(encoding="utf-8-sig")
        is_json = path.suffix.lower() == ".json"
        names: Any = json.loads(text) if is_json else text.rstrip().splitlines()
    if isinstance(names, dict):
        by_index = {str(index): name for name, index in names.items()}
        names = by_index if len(by_index) == len(names) else None
    found = [name.strip() for name in names_of_classes(names) or ()]
    if not found or not all(found) or len({*found}) < len(found):
        raise UserError(
            f"--class-map {path}: expected the name of each class on a line of its own, or JSON "
            "with a list of them or {name: index}, each name once and the indices from 0 on."
        )
    return found


def names_of_classes(names: Any) -> list[str] | None:
    """The names of all classes, from a list or ``{index: name}``; None for anything else."""
    if isinstance(names, Mapping):
        by_index = {str(index): name for index, name in names.items()}
        names = [by_index.get(str(index)) for index in range(len(names))]
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return list(names) if len(names) == len({*names}) > 0 else None


def imagenet_names(count: int) -> list[str] | None:
    """The classes of weights without names: those of ImageNet if there are as many, or unknown."""
    names: list[str] = timm.data.ImageNetInfo().label_names()
    return names if count == len(names) else None


def check_order(classes: Sequence[str], what: str, instead: str = "") -> None:
    """Refuse data whose classes, or their order, may differ from those of weights without names.

    If there are as many as in ImageNet, they must be ImageNet's, or numbers. Others are taken by
    letter, which torchvision and timm do differently for numbers and capitals.

    Args:
        classes: those of the data, sorted by letter.
        what: what has as many classes, for messages; and ``instead``, a remedy and "or".

    Raises:
        UserError: naming the two orders, if they differ.
    """
    remedy = f"{instead}{ORDERED}"
    imagenet = imagenet_names(len(classes))
    if imagenet is not None and not all(name.isdecimal() for name in classes):
        check_same(imagenet, classes, f"{what}{TAKEN}", remedy)
        return
    logger.info("%s has no names of classes: they are taken in the order of their letters", what)
    try:
        other = sorted(classes, key=timm.utils.misc.natural_key)
    except ValueError:  # timm takes a superscript for a number, and cannot sort it
        return
    if other != list(classes):
        pairs = enumerate(zip(other, classes, strict=True))
        same = next(number for number, (theirs, ours) in pairs if theirs != ours)
        raise UserError(
            f"{what} has no names of classes, and timm sorts these classes {_start(other[same:])}, "
            f"torchvision {_start(classes[same:])}: {remedy}."
        )


def check_same(known: Sequence[str], classes: Sequence[str], what: str, remedy: str) -> None:
    """Refuse a classifier whose known classes, or their order, differ from the data's.

    Letters with accents may be composed or not.

    Raises:
        UserError: if they differ, with what has the classifier and the remedy.
    """
    if [normalize("NFC", name) for name in known] != [normalize("NFC", name) for name in classes]:
        raise UserError(
            f"{what} knows {len(known)} classes that are not the {len(classes)} of --data "
            f"({_start(known)} and {_start(classes)}): {remedy}."
        )


def _start(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + ", ..." * (len(names) > 4)
