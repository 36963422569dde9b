"""Figures of mixing matrices, with matplotlib."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

COLORS = "RdBu_r"  # blue below zero, white at zero, red above
SIDE = 84  # pixels of the picture of a row
GAP = 4  # pixels between two pictures


def mosaic(images: Tensor) -> NDArray[np.uint8]:
    """Pictures side by side on black, each scaled by its largest absolute value.

    Args:
        images: (down, across, rows, columns).

    Returns:
        RGBA bytes (height, width, 4). An entry is a square of ``max(1, SIDE // max(rows,
        columns))`` pixels, and GAP pixels lie between two pictures.
    """
    rows, columns = images.shape[2:]
    pixel = max(1, SIDE // max(rows, columns))
    scaled = images / images.abs().amax((2, 3), keepdim=True).clamp_min(1e-12)
    colors = colormaps[COLORS]((scaled.numpy() + 1) / 2, bytes=True)
    tiles = colors.repeat(pixel, axis=2).repeat(pixel, axis=3)
    spaced = np.pad(tiles, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)))
    canvas = np.concatenate(np.concatenate(spaced, axis=1), axis=1)[:-GAP, :-GAP]
    canvas[..., 3] = 255
    return canvas


def patch_figure(images: Tensor, rows: range, columns: range, title: str) -> Figure:
    """Rows of an image model's A, as in the paper's figures of its linear layers.

    Args:
        images: (rows, columns, grid rows, grid columns), see :func:`.matrices.row_images`.
        rows: rows of the patches that are shown.
        columns: their columns.
        title: of the picture.
    """
    pixels = mosaic(images)
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(width / 100 + 1.6, height / 100 + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(pixels, interpolation="none")
    down, across = (height + GAP) / len(rows), (width + GAP) / len(columns)
    axes.set(
        title=title,
        xlabel="column of the patch that receives",
        ylabel="row of the patch that receives",
        xticks=[(i + 0.5) * across - GAP / 2 for i in range(len(columns))],
        yticks=[(i + 0.5) * down - GAP / 2 for i in range(len(rows))],
        xticklabels=list(columns),
        yticklabels=list(rows),
    )
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), COLORS), ax=axes, shrink=0.8)
    bar.set_label("weight, as a share of the largest in its picture")
    return figure


def heat_map(matrices: Mapping[str, Tensor], title: str, causal: bool) -> Figure:
    """A translation model's A, and some of its rows against the distance from their position.

    Args:
        matrices: name of each head: (positions, positions); row t holds the weights of all
            positions in output t.
        title: for the picture.
        causal: whether rows end at their own position.
    """
    figure = Figure(figsize=(10, 4 * len(matrices)), layout="constrained")
    figure.suptitle(title)
    for (name, weight), (matrix_axes, row_axes) in zip(
        matrices.items(), figure.subplots(len(matrices), 2, squeeze=False), strict=True
    ):
        limit = max(weight.abs().max().item(), 1e-12)
        picture = matrix_axes.imshow(
            weight.numpy(), cmap=COLORS, vmin=-limit, vmax=limit, interpolation="none"
        )
        figure.colorbar(picture, ax=matrix_axes).set_label("weight")
        matrix_axes.set(title=name, xlabel="from position", ylabel="to position")
        length = len(weight)
        for row in sorted({length // 8, length // 4, length // 2}):
            end = row + 1 if causal else length
            row_axes.plot(np.arange(end) - row, weight[row, :end].numpy(), label=f"row {row}", lw=1)
        row_axes.axhline(0, color="black", lw=0.5)
        row_axes.set(
            title=f"rows of {name}",
            xlabel="distance from the row's own position",
            ylabel="weight",
        )
        row_axes.legend()
    return figure


def sparsity_plot(numbers: Mapping[str, Sequence[Mapping[str, float]]], threshold: float) -> Figure:
    """Sparsity against the layer: one plot for each stack, one curve for each matrix."""
    figure = Figure(figsize=(5 * len(numbers), 3.5), layout="constrained")
    for axes, (stack, members) in zip(
        figure.subplots(1, len(numbers), squeeze=False)[0], numbers.items(), strict=True
    ):
        for letter in members[0]:
            axes.plot([100 * layer[letter] for layer in members], marker="o", label=letter)
        axes.set(
            title=f"{stack}: entries below {100 * threshold:g}% of the largest",
            xlabel="layer",
            ylabel="% of the entries",
            ylim=(0, 100),
            xticks=range(len(members)),
        )
        axes.legend()
    return figure


def png(figure: Figure) -> bytes:
    """A PNG file of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
