"""The options of the pictures."""

from dataclasses import dataclass
from pathlib import Path

from resmlp_mt.command_line import option
from resmlp_mt.option_types import POSITIVE, number


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is drawn."""

    checkpoint: Path = option(..., "checkpoint", help=".pt, .pth or .safetensors")
    output: Path = option(..., metavar="DIR", help="folder to write")
    threshold: float = option(
        0.05,
        type=number(float, above=0, below=1),
        help="an entry is small below this share of the largest one",
    )
    patches: int = option(
        6, type=POSITIVE, help="images: draw the rows of the N x N central patches"
    )
    grid: list[int] | None = option(
        None, type=POSITIVE, nargs=2, metavar=("ROWS", "COLUMNS"),
        help="images: the grid of patches, if the checkpoint does not have it and it is not square",
    )  # fmt: skip
    positions: int = option(
        64, type=POSITIVE,
        help="translation: draw and count the first N positions; later ones are seldom trained",
    )  # fmt: skip
