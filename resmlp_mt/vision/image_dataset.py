"""Images with the indices of their classes, as PyTorch's DataLoader takes them."""

import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, TypeVar
from unicodedata import normalize

from PIL import Image
from torch.utils.data import Dataset

from resmlp_mt.errors import UserError
from resmlp_mt.vision.images import EXTENSIONS, BadImage, open_image
from resmlp_mt.vision.transforms import Transform

logger = logging.getLogger(__name__)
Source = TypeVar("Source")


class UnknownClassesError(UserError):
    """Data with classes that are not among those of the training or of a model.

    Attributes:
        names: all classes of the data.
    """

    def __init__(self, message: str, names: set[str]) -> None:
        super().__init__(message)
        self.names = names


class ImageDataset(Dataset[tuple[Any, int] | BadImage]):
    """Images with the indices of their classes.

    ``dataset[i]`` is (transform(image), class index), or a :class:`BadImage` that says why the
    image is missing; :func:`resmlp_mt.vision.images.collate` separates these.

    Args:
        sources: where the images are, one entry each, for :meth:`read`.
        targets: class index of each image.
        classes: name of each class.
        transform: applied to the RGB image.

    Attributes:
        image_size: (height, width) of all images, if they have one and it is known without reading
            them.
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
    """Images that are decoded already: arrays (height, width, 3) of uint8, or a BadImage."""

    def __init__(self, sources: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(sources, *args, **kwargs)
        sizes = {source.shape[:2] for source in sources if not isinstance(source, BadImage)}
        self.image_size = sizes.pop() if len(sizes) == 1 else None

    def read(self, index: int) -> Image.Image:
        """See :meth:`ImageDataset.read`."""
        source = self.sources[index]
        if isinstance(source, BadImage):
            raise source
        return Image.fromarray(source)


def distinct(names: Iterable[str]) -> list[str]:
    """Names of classes in order, without those that are there with other forms of accents."""
    return sorted({normalize("NFC", name): name for name in sorted(names)}.values())


def labelled(
    files: Mapping[tuple[str, ...], Source],
    folders: Set[str],
    classes: Sequence[str],
    where: str,
    *,
    is_training: bool,
    select: str = "",
) -> tuple[list[Source], list[int]]:
    """The files of classes, and the indices of these.

    Letters with accents may be composed or not: macOS writes another form than other systems.

    Args:
        files: by the parts of their paths, from the folder of their class on.
        folders: the names of the classes that have a folder.
        classes: name of each index.
        where: the data, for messages; the name of a folder may follow.
        is_training: the training needs images of each folder; a validation class may have none.
        select: the class map whose choice ``classes`` are, for messages: as in timm, names that
            it lacks are left out. Empty: they are refused.

    Raises:
        UnknownClassesError: if they are refused.
        UserError: if the class map has none of them, or a training class has no images.
    """
    inner: dict[str, set[str]] = {}  # for each class, the folders inside that have images
    for name, *rest in files:
        inner.setdefault(name, set()).add(rest[0] if len(rest) > 1 else "")
    names, place = {*folders, *inner}, where.rstrip(": /")
    numbers = {normalize("NFC", name): index for index, name in enumerate(classes)}
    found = {name: numbers.get(normalize("NFC", name)) for name in names}
    indices = {name: index for name, index in found.items() if index is not None}
    if unknown := sorted(names - indices.keys()):
        shown = ", ".join(unknown[:5])
        if not select:
            raise UnknownClassesError(
                f"{place} has classes that training lacks ({shown}); remove them or train with "
                "them.",
                names,
            )
        if not indices:
            raise UserError(
                f"{place} has none of the classes of {select}, but {shown}: both must have the "
                "same names."
            )
        logger.info(
            "%s: %d of %d classes are not in %s, and are left out (%s)",
            place, len(unknown), len(names), select, shown,
        )  # fmt: skip
    empty = sorted(indices.keys() - inner.keys())
    if empty and is_training:
        raise UserError(f"{where}{empty[0]} holds no images ({', '.join(EXTENSIONS)}).")
    nested = [name for name, own in inner.items() if "" not in own and len(own) > 1]
    if 2 * len(nested) > len(inner):
        logger.warning(
            "%s: the %d classes are its uppermost folders, but most of them have images only in "
            "folders inside (%s/%s): if those are the classes, move them up",
            place, len(inner), nested[0], min(inner[nested[0]]),
        )  # fmt: skip
    kept = [(file, indices[inside[0]]) for inside, file in files.items() if inside[0] in indices]
    return [file for file, _ in kept], [index for _, index in kept]


def check_classes(train: ImageDataset, validation: ImageDataset) -> None:
    """Warn of classes without a training image, which numbered shards and class maps may have.

    Raises:
        UserError: naming those that validation has.
    """
    found = set(train.targets)
    absent = [name for index, name in enumerate(train.classes) if index not in found]
    if absent:
        logger.warning(
            "--data: %d of the %d classes %s no training images (%s): shards count theirs from 0, "
            "and --class-map names those of the data",
            len(absent), len(train.classes), "has" if len(absent) == 1 else "have",
            ", ".join(absent[:5]) + ", ..." * (len(absent) > 5),
        )  # fmt: skip
    unseen = sorted(set(validation.targets) - found)
    if unseen:
        names = ", ".join(train.classes[index] for index in unseen[:5])
        raise UserError(
            f"--data: validation has classes that training lacks ({names}); remove them or train "
            "with them."
        )
