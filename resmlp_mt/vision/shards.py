"""Datasets from WebDataset shards in a local folder: uncompressed tar files, read at random."""

import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from resmlp_mt.errors import UserError
from resmlp_mt.vision.archives import check_end
from resmlp_mt.vision.image_dataset import ImageDataset
from resmlp_mt.vision.images import EXTENSIONS, MAX_BYTES, BadImage, is_hidden, open_image
from resmlp_mt.vision.transforms import Transform

#: the largest index gives the number of classes, so a wrong index must not fill the memory
MAX_CLASSES = 1_000_000


class ShardDataset(ImageDataset):
    """Images inside uncompressed tar files: (shard, offset, size, name) each."""

    def read(self, index: int) -> Image.Image:
        """See :meth:`ImageDataset.read`."""
        shard, offset, size, name = self.sources[index]
        if size > MAX_BYTES:
            raise BadImage(f"{shard}:{name}", f"the file has more than {MAX_BYTES:,} bytes")
        try:
            with open(shard, "rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise BadImage(f"{shard}:{name}", error.strerror or str(error)) from error
        return open_image(content, f"{shard}:{name}")


def shard_dataset(
    folder: Path, split: str, transform: Transform | None, classes: Sequence[str] | None
) -> ImageDataset:
    samples, targets = shard_samples(folder, split)
    if classes is None:
        training = targets if split == "train" else shard_samples(folder, "train")[1]
        classes = [str(index) for index in range(max(training) + 1)]
    if max(targets) >= len(classes):
        raise UserError(
            f"--data wds {folder}: {split} has class {max(targets)}, but training has "
            f"{len(classes)} classes, counted from 0."
        )
    return ShardDataset(samples, targets, classes, transform)


def _word(split: str) -> re.Pattern[str]:
    """Matches a split's name, but not inside another word: train-interval-0.tar is for training."""
    return re.compile(
        rf"(?<![a-z]){re.escape(split)}{'(idation)?' * (split == 'val')}(?![a-z])", re.I
    )


def shard_samples(folder: Path, split: str) -> tuple[list[tuple[str, int, int, str]], list[int]]:
    """Where the images of all shards of a split lie, and their classes."""
    samples: dict[tuple[Path, str], tuple[str, int, int, str]] = {}
    labels: dict[tuple[Path, str], int] = {}
    shards = sorted(p for p in folder.glob("*.tar") if not is_hidden(p.name))
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
                    extension = extension.lower()  # also WebDataset's rule
                    if not member.isfile() or is_hidden(member.name):
                        continue
                    last = Path(member.name).suffix.lower()
                    if last in EXTENSIONS and f".{extension}" != last:
                        raise UserError(
                            f"--data wds: {shard}: WebDataset takes {member.name} for "
                            f"{extension!r} of {stem!r}: write keys without dots."
                        )
                    key = (shard, str(Path(member.name).with_name(stem)))
                    if f".{extension}" in EXTENSIONS:
                        samples[key] = (str(shard), member.offset_data, member.size, member.name)
                    elif extension == "cls":
                        labels[key] = _label(file, member, shard)
                check_end(archive, shard)
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"--data wds: {shard} cannot be read: {error}.") from error
    if not samples:
        raise UserError(f"--data wds: {folder} holds no images in shards such as {split}-0000.tar.")
    for shard, name in samples.keys() - labels.keys():
        raise UserError(f"--data wds: {shard} has no class for {name}: {name}.cls is missing.")
    return list(samples.values()), [labels[key] for key in samples]


def _label(file: BinaryIO, member: tarfile.TarInfo, shard: Path) -> int:
    file.seek(member.offset_data)
    text = file.read(min(member.size, 100))
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
