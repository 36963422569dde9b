"""The images behind ``--data`` and what is done to them on the way into a model.

=====================  ==========================================================================
DIR                    DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE, as torchvision's ImageFolder
cifar10-tar FILE       an archive of small images, .../train/CLASS/IMAGE and .../val/CLASS/IMAGE,
                       decoded once into memory
wds DIR                WebDataset shards DIR/*.tar with the word train, or val or validation, in
                       their names; samples are KEY.jpg (or .png, .webp, ...) and KEY.cls
digits                 scikit-learn's 1,797 handwritten digits of 8 x 8; a fifth is held out
=====================  ==========================================================================

All of them are map-style datasets of (image, class index): whatever the number of processes and
workers, the order is the sampler's alone, and a training can go on in the middle of an epoch.
"""

import random
import re
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import timm.data
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.data import auto_augment
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import find_classes, make_dataset
from torchvision.transforms.functional import crop

from resmlp_mt.errors import UserError
from resmlp_mt.vision.images import EXTENSIONS, BadImage, open_image

Transform = Callable[[Image.Image], Any]

#: classes are as many as the largest index says: a wrong one must not fill the memory with names
MAX_CLASSES = 1_000_000


class ImageDataset(Dataset[tuple[Any, int] | BadImage]):
    """Images with the indices of their classes.

    ``dataset[i]`` is (transform(image), class index), or the :class:`BadImage` that says why
    there is no image; :func:`resmlp_mt.vision.images.collate` sets those apart.

    Args:
        sources: where the images are, one entry each; what :meth:`read` understands.
        targets: class index of each image.
        classes: name of each class.
        transform: applied to the RGB image.

    Attributes:
        image_size: (height, width) of all images where it is known without reading them.
    """

    image_size: tuple[int, int] | None = None

    def __init__(
        self,
        sources: Sequence[Any],
        targets: Sequence[int],
        classes: Sequence[str],
        transform: Transform | None = None,
    ) -> None:
        self.sources = sources
        self.targets = list(targets)
        self.classes = list(classes)
        self.transform = transform

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB.

        Raises:
            BadImage: if it cannot be read.
        """
        return open_image(self.sources[index])

    def __getitem__(self, index: int) -> tuple[Any, int] | BadImage:
        try:
            image = self.read(index)
        except BadImage as bad:
            return bad
        return (self.transform(image) if self.transform else image), self.targets[index]

    def __len__(self) -> int:
        return len(self.sources)


class MemoryDataset(ImageDataset):
    """Images decoded beforehand: arrays (height, width, 3) of uint8, or a BadImage."""

    def __init__(self, sources: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(sources, *args, **kwargs)
        good = [source for source in sources if not isinstance(source, BadImage)]
        self.image_size = good[0].shape[:2] if good else None

    def read(self, index: int) -> Image.Image:
        """See :meth:`ImageDataset.read`."""
        source = self.sources[index]
        if isinstance(source, BadImage):
            raise source
        return Image.fromarray(source)


class ShardDataset(ImageDataset):
    """Images inside uncompressed tar files: (shard, offset, size, name) each."""

    def read(self, index: int) -> Image.Image:
        """See :meth:`ImageDataset.read`."""
        shard, offset, size, name = self.sources[index]
        try:
            with open(shard, "rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise BadImage(f"{shard}:{name}", error.strerror or str(error)) from error
        return open_image(content, f"{shard}:{name}")


def create_dataset(
    data: Sequence[str],
    split: str,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
) -> ImageDataset:
    """The dataset that ``--data`` names.

    Args:
        data: the words of ``--data``, see the head of this module.
        split: "train" or "val".
        transform: applied to each RGB image.
        classes: the names that class indices stand for, those of a checkpoint for instance;
            by default all classes of the training split, in alphabetical order.

    Raises:
        UserError: if the data is missing, empty or damaged, or has a class that is not among
            ``classes`` (a validation class that training lacks).
    """
    match list(data):
        case ["digits"]:
            return _digits(split, transform)
        case ["cifar10-tar", archive]:
            return _archive(Path(archive), split, transform, classes)
        case ["wds", folder]:
            return _shards(Path(folder), split, transform, classes)
        case [folder] if folder not in ("cifar10-tar", "wds"):
            return _folder(Path(folder), split, transform, classes)
    raise UserError(
        f"--data {' '.join(data)} is not understood: expected a folder, cifar10-tar FILE, wds DIR "
        "or digits."
    )


def _class_indices(names: set[str], classes: Sequence[str], where: str) -> dict[str, int]:
    """Indices of the class names; those that ``classes`` lacks are refused."""
    unknown = sorted(names - set(classes))
    if unknown:
        raise UserError(
            f"{where} has classes that training lacks ({', '.join(unknown[:5])}); remove them or "
            "train with them."
        )
    return {name: index for index, name in enumerate(classes)}


def _folder(
    root: Path, split: str, transform: Transform | None, classes: Sequence[str] | None
) -> ImageDataset:
    folder = root / split
    if not folder.is_dir():
        raise UserError(f"--data: there is no folder {folder}; expected {split}/CLASS/IMAGE in it.")
    try:
        names = set(find_classes(folder)[0])
        if classes is None:
            train = root / "train"
            classes = find_classes(train if train.is_dir() else folder)[0]
        indices = _class_indices(names, classes, str(folder))
        # in training an empty folder is a mistake; in validation a class may be absent
        found = {name: indices[name] for name in names}
        samples = make_dataset(folder, found, extensions=EXTENSIONS, allow_empty=split != "train")
    except OSError as error:  # torchvision's findings, FileNotFoundError, among them
        reason = error.strerror or str(error).split(" Supported extensions")[0].rstrip(". ")
        raise UserError(f"--data {folder}: {reason}; expected CLASS/IMAGE in it.") from error
    if not samples:
        raise UserError(f"--data: {folder} holds no images ({', '.join(EXTENSIONS)}).")
    paths, targets = zip(*samples, strict=True)
    return ImageDataset(paths, targets, classes, transform)


def _archive(
    path: Path, split: str, transform: Transform | None, classes: Sequence[str] | None
) -> ImageDataset:
    names: list[str] = []
    images: list[NDArray[np.uint8] | BadImage] = []
    training_classes: set[str] = set()
    training_folders: set[str] = set()
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                *_, part, name, file = ("", "", "", *Path(member.name).parts)
                if member.isdir() and name == "train":
                    training_folders.add(file)
                is_file = member.isfile() or member.islnk()  # tar keeps equal files once
                hidden = file.startswith(".")  # macOS puts such files beside the images
                if not is_file or hidden or Path(file).suffix.lower() not in EXTENSIONS:
                    continue
                if part == "train":
                    training_classes.add(name)
                if part == split:
                    content = archive.extractfile(member)
                    assert content is not None  # it is a regular file
                    names.append(name)
                    images.append(_decode(content.read(), f"{path}:{member.name}"))
            _check_end(archive, path)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"--data cifar10-tar {path} cannot be read: {reason}.") from error
    if not images:
        raise UserError(f"--data cifar10-tar {path} holds no images {split}/CLASS/IMAGE.")
    empty = sorted(training_folders - training_classes)
    if empty and split == "train":
        raise UserError(
            f"--data cifar10-tar {path}: train/{empty[0]} holds no images "
            f"({', '.join(EXTENSIONS)})."
        )
    if classes is None:
        classes = sorted(training_classes or set(names))
    indices = _class_indices(set(names), classes, f"{path}, {split}/,")
    return MemoryDataset(images, [indices[name] for name in names], classes, transform)


def _check_end(archive: tarfile.TarFile, path: Path) -> None:
    """Refuse an archive that was not read to its end.

    tarfile takes any header behind the first that it does not understand for the end.

    Raises:
        UserError: naming the file and the byte.
    """
    assert archive.fileobj is not None  # it is open
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if block not in (b"", bytes(tarfile.BLOCKSIZE)):
        raise UserError(
            f"--data: {path} is damaged at byte {archive.offset:,} of the archive: expected "
            "another file or its end; get it again."
        )


def _decode(content: bytes, name: str) -> NDArray[np.uint8] | BadImage:
    try:
        return np.asarray(open_image(content, name))
    except BadImage as bad:
        return bad


def _shards(
    folder: Path, split: str, transform: Transform | None, classes: Sequence[str] | None
) -> ImageDataset:
    samples, targets = _shard_samples(folder, split)
    if classes is None:
        training = targets if split == "train" else _shard_samples(folder, "train")[1]
        classes = [str(index) for index in range(max(training) + 1)]
    if max(targets) >= len(classes):
        raise UserError(
            f"--data wds {folder}: {split} has class {max(targets)}, but training has "
            f"{len(classes)} classes, counted from 0."
        )
    return ShardDataset(samples, targets, classes, transform)


def _word(split: str) -> re.Pattern[str]:
    """A split's name, but not inside another word: train-interval-0.tar is for training."""
    return re.compile(
        rf"(?<![a-z]){re.escape(split)}{'(idation)?' * (split == 'val')}(?![a-z])", re.I
    )


def _shard_samples(folder: Path, split: str) -> tuple[list[tuple[str, int, int, str]], list[int]]:
    """Where the images of all shards of a split lie, and their classes."""
    samples: dict[tuple[Path, str], tuple[str, int, int, str]] = {}
    labels: dict[tuple[Path, str], int] = {}
    shards = sorted(folder.glob("*.tar"))
    both = [p for p in shards if all(_word(part).search(p.stem) for part in ("train", "val"))]
    if both:
        raise UserError(
            f"--data wds: {both[0]} is named after both train and val; name it after one."
        )
    for shard in (path for path in shards if _word(split).search(path.stem)):
        try:
            with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    # WebDataset's rule: the key ends at the first dot of the file's name
                    stem, _, extension = Path(member.name).name.partition(".")
                    if not stem:  # a hidden file, or the folder itself
                        continue
                    last = Path(member.name).suffix.lower()
                    if last in EXTENSIONS and f".{extension.lower()}" != last:
                        raise UserError(
                            f"--data wds: {shard}: WebDataset takes {member.name} for "
                            f"{extension!r} of {stem!r}: write keys without dots."
                        )
                    key = (shard, str(Path(member.name).with_name(stem)))
                    if f".{extension.lower()}" in EXTENSIONS:
                        samples[key] = (str(shard), member.offset_data, member.size, member.name)
                    elif extension == "cls":
                        labels[key] = _label(file, member, shard)
                _check_end(archive, shard)
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"--data wds: {shard} cannot be read: {error}.") from error
    if not samples:
        raise UserError(f"--data wds: {folder} holds no images in shards such as {split}-0000.tar.")
    for shard, name in samples.keys() - labels.keys():
        raise UserError(f"--data wds: {shard} has no class for {name}: {name}.cls is missing.")
    return list(samples.values()), [labels[key] for key in samples]


def _label(file: BinaryIO, member: tarfile.TarInfo, shard: Path) -> int:
    file.seek(member.offset_data)
    text = file.read(member.size)
    if not text.strip().isdigit():
        raise UserError(
            f"--data wds: {shard}, {member.name}: expected a class index, but found {text[:20]!r}."
        )
    if int(text) >= MAX_CLASSES:
        raise UserError(
            f"--data wds: {shard}, {member.name}: expected a class index below {MAX_CLASSES:,}, "
            f"but found {text[:20]!r}."
        )
    return int(text)


def _digits(split: str, transform: Transform | None) -> ImageDataset:
    digits = load_digits()
    rgb = np.repeat((digits.images * (255 / 16)).round().astype(np.uint8)[..., None], 3, axis=-1)
    parts = train_test_split(
        rgb, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    train_images, val_images, train_targets, val_targets = parts
    if split not in ("train", "val"):
        raise UserError(f"--data digits has the splits train and val, but not {split}.")
    images, targets = (
        (train_images, train_targets) if split == "train" else (val_images, val_targets)
    )
    classes = [str(digit) for digit in digits.target_names]
    return MemoryDataset(images, [int(target) for target in targets], classes, transform)


def create_transform(data_config: dict[str, Any], normalize: bool = True) -> Transform:
    """The evaluation transform of a checkpoint's data_config: resize, central crop, normalise.

    Args:
        data_config: input_size, interpolation, mean, std and crop_pct, as in timm.
        normalize: without it the result is a uint8 tensor, see :class:`Normalize`.
    """
    transform: Transform = timm.data.create_transform(**data_config, normalize=normalize)
    return transform


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's operation; its strongest level keeps 0 bits, which Pillow 12 and later refuse."""
    if bits_to_keep == 0:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = auto_augment.posterize(image, bits_to_keep)
    return posterized


for _name in ("Posterize", "PosterizeIncreasing"):
    auto_augment.NAME_TO_OP[_name] = _posterize


class _PaddedCrop:
    """The image, resized where it needs to be, shifted by up to ``padding`` pixels; black outside.

    torchvision's RandomCrop does the same by enlarging the image first, which takes most of the
    time that small images are given.
    """

    def __init__(self, size: tuple[int, int], padding: int) -> None:
        self.size = size
        self.padding = padding

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        top, left = (random.randint(-self.padding, self.padding) for _ in range(2))
        cropped: Image.Image = crop(image, top, left, height, width)
        return cropped


def create_training_transform(data_config: dict[str, Any], **augmentation: Any) -> Transform:
    """timm's augmentation; the result is a uint8 tensor (3, height, width).

    Up to 32 x 32 pixels a crop from the image, padded by an eighth (4 pixels for CIFAR), takes
    the place of the random resized crop, as in the authors' code; images of another size are
    resized first.

    Args:
        data_config: input_size, interpolation, mean, std; as in timm.
        augmentation: no_aug, scale, ratio, hflip, color_jitter, auto_augment, ... of
            ``timm.data.create_transform``.
    """
    geometry = {key: value for key, value in data_config.items() if key != "crop_pct"}
    transform = timm.data.create_transform(
        **{**geometry, **augmentation}, is_training=True, normalize=False
    )
    size = data_config["input_size"][1:]
    if max(size) <= 32 and not augmentation.get("no_aug"):
        transform.transforms[0] = _PaddedCrop(size, max(size) // 8)
    result: Transform = transform
    return result


class Normalize(torch.nn.Module):
    """uint8 images (batch, 3, height, width) to normalised float32: on the device, by batch."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return images.float().sub_(self.mean).div_(self.std)
