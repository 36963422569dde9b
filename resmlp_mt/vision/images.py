"""Reading single image files: every image that is read anywhere in vision goes through here.

What is done to an image, in this order:

* it is decoded completely, so that a truncated file is found out here and not later;
* it is turned as its EXIF orientation says, as image viewers do (torchvision and timm do not);
* 16 bits a channel become 8 by dropping the low byte: scaled, where a plain conversion clips;
* transparency is laid on white;
* grey, CMYK and palettes become RGB.

Of several frames the first counts. Refused are images of more than :data:`MAX_PIXELS` pixels or
more than :data:`MAX_RATIO` times as long as wide, before they are decoded, and files in other
formats than :data:`FORMATS`.
"""

import io
import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from resmlp_mt.errors import UserError

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]

#: Pillow's own bound against decompression bombs: a quarter of a GiB as RGB
MAX_PIXELS = 89_478_485
#: resizing brings the shorter side to that of the model and enlarges the longer one with it: few
#: pixels in a line of one become gigabytes; at this ratio, 224 pixels take some 30 MB
MAX_RATIO = 200
#: the formats of torchvision's ImageFolder, and GIF; EPS, PDF and the like would run programs
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
EXTENSIONS = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"
)  # fmt: skip


class BadImage(ValueError):  # noqa: N818  (the file is bad, not the program)
    """A file that holds no image that can be used.

    A dataset *returns* it in place of the sample instead of raising it: an exception loses its
    type and gains a traceback on its way out of a worker of a DataLoader. :func:`collate` and
    :class:`SkipCounter` do the rest.

    Args:
        name: the file.
        reason: what is wrong with it, as the end of a sentence.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that it can be pickled
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def open_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Read an image as 8-bit RGB; what is done to it is said at the head of this module.

    Args:
        source: a file, or the bytes of one.
        name: what errors call it; the path if ``source`` is one.

    Raises:
        BadImage: if there is no such file, or it is no complete image that can be used.
    """
    if name is None:
        name = "image" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and Path(source).is_fifo():  # reading it would wait for ever
        raise BadImage(name, "it is no file but a pipe")
    if source == b"":
        raise BadImage(name, "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # metadata that cannot be read does not hurt the pixels
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
                image.load()
                return _to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(name, f"the image has more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        empty = isinstance(source, str | Path) and Path(source).stat().st_size == 0
        kinds = ", ".join(FORMATS)
        reason = (
            "the file is empty" if empty else f"this is no image file of a known kind ({kinds})"
        )
        raise BadImage(name, reason) from error
    except OSError as error:
        raise BadImage(name, error.strerror or str(error)) from error
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on broken files
        raise BadImage(name, f"the image cannot be decoded ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    kind = image.format
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # orientation that cannot be read is no orientation
        logger.debug("unreadable EXIF data", exc_info=True)
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("32 bits a channel have no stated range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def collate(samples: Sequence[Any]) -> tuple[Tensor, Tensor, list[BadImage]]:
    """Make a batch of (image tensor, class index) pairs, with the bad images set apart.

    Returns:
        images (batch, channels, height, width), targets (batch,) and what was left out; both
        tensors have length 0 if all images of the batch are bad.
    """
    good = [sample for sample in samples if not isinstance(sample, BadImage)]
    bad = [sample for sample in samples if isinstance(sample, BadImage)]
    if not good:
        return torch.empty(0), torch.empty(0, dtype=torch.long), bad
    images, targets = zip(*good, strict=True)
    return torch.stack(images), torch.tensor(targets), bad


class SkipCounter:
    """What ``--on-error`` means: the first bad image ends the command, or all are left out.

    Args:
        on_error: "raise" or "skip".

    Attributes:
        skipped: what was left out, {file: reason}; a file that comes again counts once.
    """

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self.skipped: dict[str, str] = {}

    def update(self, bad_images: Iterable[BadImage]) -> None:
        """Take note of bad images, and name each one once in the log.

        Raises:
            UserError: with "raise", naming the file.
        """
        for bad in bad_images:
            if self.on_error == "raise":
                raise UserError(f"{bad}; --on-error skip leaves such images out.")
            if bad.name not in self.skipped:
                self.skipped[bad.name] = bad.reason
                logger.warning("skipped %s", bad)
