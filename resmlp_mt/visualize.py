"""``python -m resmlp_mt.visualize``: what the mixing matrices of a checkpoint have learned.

For an image model, rows of A as images (the paper's figures of its linear layers); for a
translation model, the encoder's and the decoder's A as heat maps with some of their rows as curves;
for both, the sparsity of A, B and C by layer. Only the state dict is read, so any checkpoint of
:mod:`resmlp_mt` serves, and the weights of timm's and the authors' ResMLP.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resmlp_mt.command_line import POSITIVE, Parser, command, number, option


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is drawn."""

    checkpoint: Path = option(..., "checkpoint", help=".pt, .pth or .safetensors")
    output: Path = option(..., "--out", metavar="DIR", help="folder to write")
    threshold: float = option(
        0.05,
        type=number(float, above=0, below=1),
        help="an entry is small below this share of the largest one",
    )
    patches: int = option(
        6, type=POSITIVE, metavar="N", help="images: draw the rows of the N x N central patches"
    )
    grid: list[int] | None = option(
        None, type=POSITIVE, nargs=2, metavar=("ROWS", "COLUMNS"),
        help="images: the grid of patches, if the checkpoint does not have it and it is not square",
    )  # fmt: skip
    positions: int = option(
        64, type=POSITIVE, metavar="N",
        help="translation: draw and count the first N positions; later ones are seldom trained",
    )  # fmt: skip


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        "resmlp_mt.visualize",
        "Draw the mixing matrices of an image or translation checkpoint, and count "
        "the small entries of all matrices.",
        needs=["matplotlib"],
    )
    parser.add_options(Options)
    options = Options(**vars(parser.parse_args(argv)))
    parser.check_packages()
    from resmlp_mt.visualization.draw import draw  # with PyTorch and matplotlib

    count = draw(**vars(options))
    print(f"wrote {options.output / 'index.html'} and {count - 1} files beside it")


if __name__ == "__main__":
    main()
