"""Reads image files, for all commands of vision.

An image goes through these steps:

* It is decoded completely, so that a truncated file is detected here and not later.
* It is turned as its EXIF orientation says, as in image viewers (torchvision and timm do not).
* 12 or 16 bits per channel become the 8 high ones (a plain conversion would clip).
* Transparency becomes white.
* Grey, CMYK and palettes become RGB.

If there are several frames, the first is taken. Before they are decoded, images of more than
:data:`MAX_PIXELS` pixels (WebP: :data:`MAX_WEBP_PIXELS`) or more than :data:`MAX_RATIO` times as
long as wide are refused, as are files of more than :data:`MAX_BYTES` bytes, and formats other than
:data:`FORMATS`.
"""

import io
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from resmlp_mt.errors import UserError, is_of_memory, one_line, reason
from resmlp_mt.files import LFS, POINTER, is_hidden
from resmlp_mt.vision.options import OnError

logger = logging.getLogger(__name__)

#: Pillow's own bound against decompression bombs: a quarter of a GiB as RGB
MAX_PIXELS = 89_478_485
#: the decoder of WebP also keeps two canvases of four bytes per pixel: half a GiB in all
MAX_WEBP_PIXELS = MAX_PIXELS // 2
MAX_BYTES = 2**28
#: resizing scales the shorter side to the model's size, and the longer side with it, so that a
#: line of pixels can become gigabytes; at this ratio, 224 pixels take some 30 MB
MAX_RATIO = 200
#: the formats of torchvision's ImageFolder, and GIF; EPS, PDF and others would run programs
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: where an image is no image of a class
LOOSE = "in no folder of a class"
EXTENSIONS = (
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
#: tags of TIFF
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339


def is_image(path: str) -> bool:
    """Whether a relative path has the name of an image."""
    return path.lower().endswith(EXTENSIONS) and not is_hidden(path)


class ImageNames:
    """Knows the images of a folder or an archive by their names, and counts the other files.

    Args:
        place: the folder, with all files at any depth, or the archive.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._others: Counter[str] = Counter()  # by extension, or what they are

    def is_image(self, inside: str) -> bool:
        """Whether a file has the name of an image, by its path in the folder or the archive."""
        if is_image(inside):
            return True
        if not is_hidden(inside):
            self.leave_out(Path(inside).suffix.lower() or "without an extension")
        return False

    def leave_out(self, what: str) -> None:
        """Count a file that is no image, under what it is: its extension, or a few words."""
        self._others[what] += 1

    def warn(self) -> None:
        """Say which files are left out: an image of an unknown kind is not lost without a word."""
        if self._others:
            kinds = ", ".join(f"{count} {what}" for what, count in self._others.most_common(5))
            total = self._others.total()
            logger.warning(
                "%s: %d %s left out, no image by name or place (%s)",
                self._place, total, "file" if total == 1 else "files", kinds,
            )  # fmt: skip


def walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """The folders below one and behind its links, each once, and their files.

    Hidden folders are left out.

    Raises:
        OSError: if a folder may not be read: its images would be missing without a word.
    """

    def refuse(error: OSError) -> NoReturn:
        raise error

    read: set[Path] = set()
    tops = [root]  # folders come before the links that lead to them
    while tops:
        top = tops.pop(0)
        if read and Path(root).resolve().is_relative_to(Path(top).resolve()):
            logger.warning("%s leads back to %s: left out", top, root)
            continue
        # it names links, but does not follow them
        for place, below, names in os.walk(top, onerror=refuse):
            folder = Path(place).resolve()
            if folder in read:
                logger.warning("%s leads to a folder that is read already: left out", place)
                below.clear()
                continue
            read.add(folder)
            below[:] = sorted(name for name in below if not is_hidden(name))
            links = (os.path.join(place, name) for name in below)
            tops += [link for link in links if os.path.islink(link)]
            yield place, names


class BadImage(ValueError):  # noqa: N818  (the file is bad, not the program)
    """A file without a usable image.

    A dataset *returns* it in place of the sample instead of raising it, because an exception from
    a worker of a DataLoader loses its type and gets a traceback. :func:`collate` and
    :class:`SkipCounter` do the rest.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that it can be pickled
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return one_line(f"{self.name}: {self.reason}")


def open_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Read a file, or the bytes of one, as 8-bit RGB; the docstring of this module has the steps.

    Raises:
        BadImage: if the file is missing, or is not a complete and usable image.
    """
    if name is None:
        name = "image" if isinstance(source, bytes) else str(source)
    try:
        _check_file(source, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unreadable metadata does not affect the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            data = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(data, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if max(image.size) > MAX_RATIO * min(image.size):
                    raise BadImage(
                        name,
                        f"the image, {image.width} x {image.height} pixels, is more than "
                        f"{MAX_RATIO} times as long as wide",
                    )
                return _to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(name, f"the image has more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise BadImage(name, f"this is not an image file of a known kind ({kinds})") from error
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on broken files
        if is_of_memory(error):  # the file is not bad
            raise
        said = reason(error)
        if not isinstance(error, OSError):
            said = f"the image cannot be decoded ({said})"
        raise BadImage(name, said) from error


def check_bytes(size: int, name: str) -> None:
    """Refuse a file of more than :data:`MAX_BYTES` bytes with a :class:`BadImage`."""
    if size > MAX_BYTES:
        raise BadImage(name, f"the file has more than {MAX_BYTES:,} bytes")


def _check_file(source: str | Path | bytes, name: str) -> None:
    """Refuse what is no file with content, or takes much memory as soon as Pillow opens it."""
    if isinstance(source, bytes):
        size, head = len(source), source[:64]
    elif Path(source).is_fifo():  # reading it would wait forever
        raise BadImage(name, "it is a pipe, not a file")
    else:
        with Path(source).open("rb") as file:
            head = file.read(64)
            size = file.seek(0, io.SEEK_END)
    if not head:
        raise BadImage(name, "the file is empty")
    if head.startswith(LFS):
        raise BadImage(name, f"it is {POINTER}")
    check_bytes(size, name)
    width, height = _webp_size(head)
    if width * height > MAX_WEBP_PIXELS:
        raise BadImage(name, f"the image has more than {MAX_WEBP_PIXELS:,} pixels")


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height from the first 30 bytes of a WebP file (its specification, section 2.5 on).

    They are 0 x 0 for other files.
    """
    kind = head[12:16] if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else b""
    if kind == b"VP8X":  # 24 bits each, minus one
        width, height = (int.from_bytes(head[i : i + 3], "little") + 1 for i in (24, 27))
        return width, height
    if kind == b"VP8L":  # 14 bits each, minus one
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":  # 14 bits each, and two bits of a scale
        width, height = (int.from_bytes(head[i : i + 2], "little") & 0x3FFF for i in (26, 28))
        return width, height
    return 0, 0


def _to_rgb(image: Image.Image) -> Image.Image:
    kind = image.format
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # an unreadable orientation is ignored
        if is_of_memory(error):
            raise
        logger.debug("unreadable EXIF data", exc_info=True)
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    if 2 in tags.get(SAMPLE_FORMAT, ()):
        raise ValueError(f"{bits} bits with a sign have no stated range")
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
        # of white that is stored as 0, Pillow turns 8 bits itself, but not these
        image = Image.fromarray(255 - grey if tags.get(PHOTOMETRIC) == 0 else grey)
    elif image.mode in ("I", "F"):
        raise ValueError("32 bits a channel have no stated range")
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Lay transparency on white, some rows at a time to save memory."""
    rows = 256
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        part = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", part.size, "white")
        result.paste(Image.alpha_composite(white, part).convert("RGB"), box)
    return result


def collate(samples: Sequence[Any]) -> tuple[Tensor, Tensor, list[BadImage]]:
    """Make a batch of (image tensor, class index) pairs, and separate the bad images.

    Returns:
        images (batch, channels, height, width), targets (batch,) and the bad images; both tensors
        have length 0 if all images of the batch are bad.
    """
    good = [sample for sample in samples if not isinstance(sample, BadImage)]
    bad = [sample for sample in samples if isinstance(sample, BadImage)]
    if not good:
        return torch.empty(0), torch.empty(0, dtype=torch.long), bad
    images, targets = zip(*good, strict=True)
    return torch.stack(images), torch.tensor(targets), bad


class SkipCounter:
    """Implements ``--on-error``: the first bad image ends the command, or all are left out.

    Attributes:
        skipped: the images left out, {file: reason}; each file counts once.
    """

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self.skipped: dict[str, str] = {}

    def update(self, bad_images: Iterable[BadImage]) -> None:
        """Record bad images, and name each one once in the log.

        Raises:
            UserError: with "raise", naming the file.
        """
        for bad in bad_images:
            if self.on_error == "raise":
                raise UserError(f"{bad}; --on-error skip leaves such images out.")
            if bad.name not in self.skipped:
                self.skipped[bad.name] = bad.reason
                logger.warning("skipped %s", bad)
