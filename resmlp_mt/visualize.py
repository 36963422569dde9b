"""``python -m resmlp_mt.visualize``: what the mixing matrices of a checkpoint have learned.

For an image model, rows of A as images (the paper's figures of its linear layers); for a
translation model, the encoder's and the decoder's A as heat maps with some of their rows as curves;
for both, the sparsity of A, B and C by layer. Only the state dict is read, so any checkpoint of
:mod:`resmlp_mt` serves, and the weights of timm's and the authors' ResMLP.
"""

from collections.abc import Sequence

from resmlp_mt.command_line import Parser, command
from resmlp_mt.visualization.options import Options


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
    from resmlp_mt.visualization.draw import draw  # with PyTorch and matplotlib

    count = draw(options)
    print(f"wrote {options.output / 'index.html'} and {count - 1} files beside it")


if __name__ == "__main__":
    main()
