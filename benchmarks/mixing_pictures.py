"""Draws the mixing matrices that a translation model has learned, by layer and head.

    python -m benchmarks.mixing_pictures CHECKPOINT.pt [--positions 32] [--out FOLDER]

Writes mixing_encoder.png and mixing_decoder.png, with a row for each layer and a column for each
head. Row t of a matrix has the weights of all positions for output t. Blue is below zero and red
above; each matrix is scaled by its largest entry.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from resmlp_mt.command_line import command
from resmlp_mt.files import replacing
from resmlp_mt.visualization.matrices import a_of, matrices, read_checkpoint, state_dict

HERE = Path(__file__).resolve().parent


def picture(title: str, layers: list[dict[str, Tensor]]) -> Figure:
    """All matrices of one side of a model.

    Args:
        layers: for each layer its matrices by name, (positions, positions) each.
    """
    heads = [list(a_of(layer).values()) for layer in layers]
    figure = Figure(figsize=(2 * len(heads[0]), 2 * len(heads) + 0.5), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(heads), len(heads[0]), squeeze=False)
    for layer, (row, members) in enumerate(zip(grid, heads, strict=True)):
        for head, (ax, matrix) in enumerate(zip(row, members, strict=True)):
            limit = max(matrix.abs().max().item(), 1e-12)
            ax.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            ax.set(title=f"layer {layer}, head {head}", xticks=[], yticks=[])
    return figure


@command
def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--positions", type=int, default=32, help="draw the first N positions")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the pictures")
    args = parser.parse_args()
    name = str(args.checkpoint)
    found = matrices(state_dict(read_checkpoint(args.checkpoint), name), name, args.positions)
    args.out.mkdir(parents=True, exist_ok=True)
    for side, layers in found.items():
        path = args.out / f"mixing_{side}.png"
        with replacing(path) as partial:
            picture(f"{side.capitalize()}: A, {args.positions} positions", layers).savefig(
                partial, dpi=100, format="png"
            )
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
