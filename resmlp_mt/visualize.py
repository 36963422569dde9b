"""``python -m resmlp_mt.visualize``: what the mixing matrices of a checkpoint have learned.

For an image model, rows of A as images (the paper's figures of its linear layers); for a
translation model, the encoder's and the decoder's A as heat maps with some of their rows as curves;
for both, the sparsity of A, B and C by layer. Only the state dict is read, so any checkpoint of
:mod:`resmlp_mt` serves, and the weights of timm's and the authors' ResMLP.
"""

from collections.abc import Sequence
from pathlib import Path

from resmlp_mt.command_line import Parser, command, number, whole_number


def create_parser() -> Parser:
    """The options."""
    parser = Parser(
        "resmlp_mt.visualize",
        "Draw the mixing matrices of an image or translation checkpoint, and count "
        "the small entries of all matrices.",
        needs=["matplotlib"],
    )
    parser.add_argument("checkpoint", type=Path, help=".pt, .pth or .safetensors")
    parser.add_argument(
        "--output", "--out", required=True, type=Path, metavar="DIR", help="folder to write"
    )
    parser.add_argument(
        "--threshold",
        type=number(float, above=0, below=1),
        default=0.05,
        help="an entry is small below this share of the largest one",
    )
    parser.add_argument(
        "--patches",
        type=whole_number(1),
        default=6,
        metavar="N",
        help="images: draw the rows of the N x N central patches",
    )
    parser.add_argument(
        "--grid",
        type=whole_number(1),
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="images: the grid of patches, if the checkpoint does not have it and it is not square",
    )
    parser.add_argument(
        "--positions",
        type=whole_number(1),
        default=64,
        metavar="N",
        help="translation: draw and count the first N positions; later ones are seldom trained",
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = create_parser()
    args = parser.parse_args(argv)
    parser.check_packages()
    from resmlp_mt.visualization.draw import draw  # with PyTorch and matplotlib

    count = draw(
        args.checkpoint,
        args.output,
        threshold=args.threshold,
        patches=args.patches,
        grid=args.grid,
        positions=args.positions,
    )
    print(f"wrote {args.output / 'index.html'} and {count - 1} files beside it")


if __name__ == "__main__":
    main()
