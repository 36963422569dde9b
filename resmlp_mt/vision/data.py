"""The datasets of ``--data``.

=====================  ==========================================================================
DIR                    DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE, as torchvision's ImageFolder;
                       :mod:`resmlp_mt.vision.splits` has other names. Hidden files and folders,
                       and those of operating systems (__MACOSX, ...) are ignored
cifar10-tar FILE       an archive of small images, .../train/CLASS/IMAGE and .../val/CLASS/IMAGE,
                       decoded once into memory
wds DIR                WebDataset shards, see :mod:`resmlp_mt.vision.shards`; also a pattern of
                       their names: DIR/{train,val}-{000..012}.tar
digits                 scikit-learn's 1,797 handwritten digits of 8 x 8; a fifth is held out
=====================  ==========================================================================

All of them are map-style datasets of (image, class index). Only the sampler determines the order,
whatever the number of processes and workers, so a training can continue in the middle of an epoch.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

import numpy as np

from resmlp_mt.errors import UserError, reason
from resmlp_mt.files import is_hidden
from resmlp_mt.vision.archives import archive_dataset
from resmlp_mt.vision.image_dataset import ImageDataset, MemoryDataset, distinct, labelled
from resmlp_mt.vision.images import EXTENSIONS, LOOSE, ImageNames, is_image, walk
from resmlp_mt.vision.shards import shard_dataset
from resmlp_mt.vision.splits import SPLITS, find_split_folder, split_folder, usual_name
from resmlp_mt.vision.transforms import Transform


def create_dataset(
    data: Sequence[str],
    split: str,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
    training: str = "train",
    *,
    select: str = "",
) -> ImageDataset:
    """The dataset that ``--data`` names.

    Args:
        data: the values of ``--data``, see the docstring of this module.
        split: "train" or "val", also under timm's names; or another.
        transform: applied to each RGB image.
        classes: name of each class index, for example from a checkpoint; by default all classes
            of the training split, in alphabetical order.
        training: name of the training split.
        select: see :func:`~resmlp_mt.vision.image_dataset.labelled`.

    Raises:
        UserError: if the data is missing, empty or damaged, or has a class that is not in
            ``classes`` (a validation class that training lacks).
    """
    match list(data):
        case ["digits"]:
            dataset = _digits(usual_name(split))
        case ["cifar10-tar", archive]:
            dataset = archive_dataset(Path(archive), split, classes, training, select)
        case ["wds", folder]:
            dataset = shard_dataset(folder, split, classes, training)
        case [folder] if folder not in ("cifar10-tar", "wds"):
            dataset = _folder(Path(folder), split, classes, training, select)
        case _:
            raise UserError(
                f"--data {' '.join(data)} is not understood: expected a folder, cifar10-tar FILE, "
                "wds DIR or digits."
            )
    dataset.transform = transform
    return dataset


def is_one_split(data: Sequence[str], split: str) -> bool:
    """Whether ``--data`` names a folder of classes itself, as timm's validate.py takes them.

    A folder without the usual splits may have others: the folders of classes hold images.
    """
    match list(data):
        case ["digits"]:
            return False
        case [folder] if not any(find_split_folder(Path(folder), s) for s in (*SPLITS, split)):
            root = Path(folder)
            return any(is_image(p.relative_to(root).as_posix()) for p in root.glob("*/*"))
    return False


def _folder(
    root: Path, split: str, classes: Sequence[str] | None, training: str, select: str
) -> ImageDataset:
    folder = split_folder(root, split)
    names = ImageNames(folder)
    files = {}
    try:
        folders = _class_names(folder)
        if classes is None:
            classes = distinct(_class_names(find_split_folder(root, training) or folder))
        chosen = {normalize("NFC", name) for name in classes}
        for name in folders:
            if normalize("NFC", name) not in chosen:  # left out, or refused below
                continue
            top = os.path.join(folder, name)
            for place, found in sorted(walk(top)):  # torchvision's order
                inside = (name, *Path(os.path.relpath(place, top)).parts)
                for file in sorted(found):
                    if names.is_image("/".join((*inside, file))):
                        files[(*inside, file)] = os.path.join(place, file)
        for path in folder.iterdir():
            if is_image(path.name) and not path.is_dir():
                names.leave_out(LOOSE)
    except OSError as error:
        why = reason(error).rstrip(". ")
        where = error.filename or folder
        raise UserError(f"--data {where}: {why}; expected CLASS/IMAGE in {folder}.") from error
    names.warn()
    is_training = usual_name(split) == usual_name(training)
    paths, targets = labelled(
        files, {*folders}, classes, f"{folder}: ", is_training=is_training, select=select
    )
    if not paths:
        raise UserError(f"--data: {folder} holds no images ({', '.join(EXTENSIONS)}).")
    return ImageDataset(paths, targets, classes)


def _class_names(folder: Path) -> list[str]:
    """The classes: all folders except those of operating systems and tools."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    classes = [name for name in names if not is_hidden(name)]
    if not classes:
        raise FileNotFoundError("it has no folders of classes")
    for name in classes:  # one that may not be read would have no images, without a word
        os.scandir(folder / name).close()
    return classes


def _digits(split: str) -> ImageDataset:
    from sklearn.datasets import load_digits  # slow to import, and only for these images
    from sklearn.model_selection import train_test_split

    if split not in SPLITS:
        raise UserError(f"--data digits has the splits train and val, but not {split}.")
    digits = load_digits()
    rgb = np.repeat((digits.images * (255 / 16)).round().astype(np.uint8)[..., None], 3, axis=-1)
    parts = train_test_split(
        rgb, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    images, targets = parts[list(SPLITS).index(split) :: 2]  # train, val, train, val
    classes = [str(digit) for digit in digits.target_names]
    return MemoryDataset(images, [int(target) for target in targets], classes)
