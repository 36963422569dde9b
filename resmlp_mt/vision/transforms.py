"""The transforms of images: timm's, and normalisation by batch on the device."""

import random
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from resmlp_mt.errors import UserError
from resmlp_mt.vision.libraries import timm, torchvision
from resmlp_mt.vision.options import INTERPOLATIONS

Transform = Callable[[Image.Image], Any]
LARGEST_SIDE = 4096


def is_data_config(config: Any, channels: int = 3) -> bool:
    """Whether images with these channels can be prepared with it; its sizes determine the memory.

    It may be anything, because it comes from a file.
    """
    match config:
        case {
            "input_size": [int(given), int(height), int(width)],
            "mean": [*mean],
            "std": [*std],
            "interpolation": str(interpolation),
            "crop_pct": int() | float() as crop_pct,
            **rest,
        } if interpolation in INTERPOLATIONS and rest.keys() <= {"crop_mode"}:
            return (
                given == channels in (1, 3)
                and 0 < height <= LARGEST_SIDE
                and 0 < width <= LARGEST_SIDE
                and all(
                    len(part) in (1, channels)
                    and all(type(value) in (int, float) and abs(value) < 1e6 for value in part)
                    for part in (mean, std)
                )
                and min(std) > 0
                and 0.05 <= crop_pct <= 1
            )
    return False


def check_data_config(config: Any, name: str, channels: int = 3) -> None:
    """Refuse what :func:`is_data_config` does not accept.

    Raises:
        UserError: if it is not a data_config, does not fit the model, or its sizes are unusual.
    """
    if not is_data_config(config, channels):
        raise UserError(
            f"{name}: its data_config (or --img-size, --crop-pct) is not usable: expected the "
            f"{channels} channels of the model, sides up to {LARGEST_SIDE} pixels, a mean and a "
            "std above 0 of each channel, a known interpolation and a crop_pct from 0.05 to 1."
        )


def create_transform(data_config: dict[str, Any], normalize: bool = True) -> Transform:
    """The evaluation transform of a checkpoint's data_config: resize, central crop, normalise.

    Args:
        data_config: input_size, interpolation, mean, std and crop_pct, as in timm.
        normalize: if False, the result is a uint8 tensor; see :func:`create_normalization`.
    """
    transform: Transform = timm.data.create_transform(**data_config, normalize=normalize)
    return transform


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's operation; timm's strongest level keeps 0 bits, which Pillow 12 and later refuse."""
    if bits_to_keep == 0:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = timm.data.auto_augment.posterize(image, bits_to_keep)
    return posterized


for _name in ("Posterize", "PosterizeIncreasing"):
    timm.data.auto_augment.NAME_TO_OP[_name] = _posterize


class PaddedCrop:
    """Resizes an image if needed, and shifts it by up to ``padding`` pixels; black outside.

    torchvision's RandomCrop does the same by enlarging the image first, which takes most of the
    time for small images.
    """

    def __init__(self, size: tuple[int, int], padding: int) -> None:
        self.size = size
        self.padding = padding

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        top, left = (random.randint(-self.padding, self.padding) for _ in range(2))
        crop = torchvision.transforms.functional.crop
        cropped: Image.Image = crop(image, top, left, height, width)
        return cropped


def create_normalization(
    data_config: dict[str, Any], device: torch.device | str = "cpu"
) -> Callable[[Tensor], Tensor]:
    """A function that normalises images on a device in place.

    They have values from 0 to 255, float32 (batch, channels, height, width). torchvision's makes
    its mean and deviation anew, and copies them to the device, for every batch.
    """
    mean, std = (
        torch.tensor([255 * value for value in data_config[name]], device=device).view(-1, 1, 1)
        for name in ("mean", "std")
    )
    return lambda images: images.sub_(mean).div_(std)
