"""``python -m resmlp_mt.visualize``: what the mixing matrices of a checkpoint have learned.

For an image model, rows of A as images (the paper's figures of its linear layers); for a
translation model, the encoder's and the decoder's A as heat maps with some of their rows as curves;
for both, the sparsity of A, B and C by layer. Only the state dict is read, so any checkpoint of
:mod:`resmlp_mt` serves, and the weights of timm's and the authors' ResMLP.
"""

import argparse
import base64
import html
import io
import json
import math
import os
import pickle
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.image import imsave
except ModuleNotFoundError as missing:
    raise SystemExit(
        "python -m resmlp_mt.visualize needs matplotlib: pip install 'resmlp_mt[plots]'."
    ) from missing

Layers = dict[str, list[dict[str, Tensor]]]
"""Stack ("image", "encoder" or "decoder"): for each layer its matrices "A", "B" and "C"."""

WEIGHT = re.compile(
    r"(?:(encoder|decoder)\.layers|blocks)\.(\d+)\.(token_mixing|ffn\.fc1|ffn\.fc2)\.weight"
)
LETTERS = {"token_mixing": "A", "ffn.fc1": "B", "ffn.fc2": "C"}
COLORS = "RdBu_r"  # blue below zero, white at zero, red above
SIDE = 84  # pixels of a picture of a row
GAP = 4  # pixels between two of them


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m resmlp_mt.visualize",
        description="Draw the mixing matrices of an image or translation checkpoint, and count "
        "the small entries of all matrices.",
    )
    parser.add_argument("checkpoint", type=Path, help=".pt, .pth or .safetensors")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.05,
        help="an entry is small below this share of the largest one (default: %(default)s)",
    )
    parser.add_argument(
        "--patches",
        type=int,
        default=6,
        metavar="N",
        help="images: draw the rows of the N x N central patches (default: %(default)s)",
    )
    parser.add_argument(
        "--grid",
        type=int,
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="images: the grid of patches, where the checkpoint does not say it and it is no "
        "square",
    )
    parser.add_argument(
        "--positions",
        type=int,
        default=64,
        metavar="N",
        help="translation: draw and count the first N positions; later ones are seldom trained "
        "(default: %(default)s)",
    )
    args = parser.parse_args()
    for option in ("patches", "positions"):
        if getattr(args, option) < 1:
            parser.error(f"--{option} must be at least 1, but is {getattr(args, option)}.")
    if args.grid is not None and min(args.grid) < 1:
        parser.error("--grid must be at least 1 x 1.")
    if not 0 < args.threshold < 1:
        parser.error(f"--threshold must be between 0 and 1, but is {args.threshold}.")
    try:
        source = read(args.checkpoint)
        layers = matrices(state_dict(source, str(args.checkpoint)), str(args.checkpoint))
        layers = leading(layers, args.positions)
        pictures = {}
        for stack, members in layers.items():
            for index, layer in enumerate(members):
                name = f"{stack}_layer_{index:02d}.png"
                if stack == "image":
                    grid = grid_of(source, len(layer["A"]), args.grid)
                    pictures[name] = png(mosaic(row_images(layer["A"], grid, args.patches)))
                else:
                    figure = heat_map(layer["A"], f"{stack}, layer {index}", stack == "decoder")
                    pictures[name] = rendered(figure)
        numbers = sparsities(layers, args.threshold)
        pictures["sparsity.png"] = rendered(sparsity_plot(numbers, args.threshold))
        report = {"checkpoint": args.checkpoint.name, "threshold": args.threshold}
        if "image" not in layers:
            report["positions"] = len(next(iter(layers.values()))[0]["A"])
        files = pictures | {
            "sparsity.json": (json.dumps(report | {"layers": numbers}, indent=1) + "\n").encode(),
        }
        files["index.html"] = page(files, args.checkpoint.name).encode()
        args.out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write(args.out / name, content)
    except OSError as error:
        raise SystemExit(f"--out {args.out} cannot be written: {error.strerror}.") from error
    except ValueError as error:
        raise SystemExit(str(error)) from error
    print(f"wrote {args.out / 'index.html'} and {len(files) - 1} files beside it")


def read(path: Path) -> Mapping[str, Any]:
    """The contents of a checkpoint, by safe loaders only.

    Raises:
        ValueError: if there is no such file, it is broken, or it is more than data.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file: expected a checkpoint.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            # fairseq's older components leave more than tensors; see there
            from resmlp_mt.fairseq_plugin.checkpoints import SAFE_GLOBALS

            with torch.serialization.safe_globals(SAFE_GLOBALS):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the loaders raise a dozen types for broken or unsafe files
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {code.group(1)}" if code else "it is broken or no checkpoint"
        raise ValueError(
            f"{path} was not loaded because {reason}: expected tensors and plain values only."
        ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} is no checkpoint: it holds a {type(loaded).__name__}.")
    return loaded


def state_dict(source: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The parameters in a checkpoint under our names; the moving average where there is one.

    Raises:
        ValueError: if there are none.
    """
    for container in ("model_ema", "state_dict_ema", "model", "state_dict"):
        if isinstance(source.get(container), Mapping):
            source = source[container]
            break
    state = {key: value for key, value in source.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{name} holds no state dict.")
    if any(key.endswith(("linear_tokens.weight", ".attn.weight")) for key in state):
        from resmlp_mt.vision.weights import own_names

        state = own_names(state)
    return state


def matrices(state: Mapping[str, Tensor], name: str) -> Layers:
    """A, B and C of every layer; the decoder's A is made triangular.

    Raises:
        ValueError: if the state dict has no mixing matrices.
    """
    found: dict[str, dict[int, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for key, value in state.items():
        match = WEIGHT.fullmatch(key)
        if match is not None:
            stack, index, matrix = match.groups()
            value = value.float()
            if not value.isfinite().all():
                raise ValueError(f"{name} holds numbers that are not finite, in {key}.")
            if stack == "decoder" and matrix == "token_mixing":
                value = value.tril()
            found[stack or "image"][int(index)][LETTERS[matrix]] = value
    layers = {stack: [members[i] for i in sorted(members)] for stack, members in found.items()}
    if not layers or any("A" not in layer for members in layers.values() for layer in members):
        raise ValueError(
            f"{name} has no linear mixing matrices: expected a checkpoint of resmlp_mt, or weights "
            "of timm's or the authors' ResMLP."
        )
    return layers


def leading(layers: Layers, positions: int) -> Layers:
    """The leading submatrices of the translation model's A; an image model's are left whole."""
    return {
        stack: [
            layer if stack == "image" else layer | {"A": layer["A"][:positions, :positions]}
            for layer in members
        ]
        for stack, members in layers.items()
    }


def grid_of(source: Mapping[str, Any], tokens: int, given: Sequence[int] | None) -> tuple[int, int]:
    """Rows and columns of patches: as given, as the checkpoint says, or a square.

    Raises:
        ValueError: if the grid does not have ``tokens`` patches or cannot be known.
    """
    if given is not None:
        if given[0] * given[1] != tokens:
            raise ValueError(
                f"--grid {given[0]} {given[1]} has {given[0] * given[1]} patches, but the mixing "
                f"matrices have {tokens}."
            )
        return given[0], given[1]
    args = source.get("model_args")
    if isinstance(args, Mapping) and args.get("img_size") and args.get("patch_size"):
        size, patch = args["img_size"], args["patch_size"]
        height, width = (size, size) if isinstance(size, int) else size
        if (height // patch) * (width // patch) == tokens:
            return height // patch, width // patch
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(
            f"the mixing matrices are for {tokens} patches, which are no square: name their grid "
            "with --grid ROWS COLUMNS."
        )
    return side, side


def row_images(weight: Tensor, grid: tuple[int, int], patches: int) -> Tensor:
    """Rows of a mixing matrix as images.

    Args:
        weight: (rows * columns) squared, patches row by row.
        grid: rows and columns.
        patches: side of the square of central patches; less where the grid is smaller.

    Returns:
        (patches, patches, rows, columns): the weights from all patches to each central patch.
    """
    images = weight.view(*grid, *grid)
    for dim, size in enumerate(grid):
        taken = min(patches, size)
        images = images.narrow(dim, (size - taken) // 2, taken)
    return images


def mosaic(images: Tensor) -> np.ndarray:
    """Pictures side by side on black, every one scaled by its largest absolute value.

    Args:
        images: (down, across, rows, columns).

    Returns:
        RGBA bytes (height, width, 4). An entry is a square of ``max(1, SIDE // max(rows,
        columns))`` pixels, and GAP pixels lie between two pictures.
    """
    down, across, rows, columns = images.shape
    pixel = max(1, SIDE // max(rows, columns))
    scaled = images / images.abs().amax((2, 3), keepdim=True).clamp_min(1e-12)
    colors = colormaps[COLORS]((scaled.numpy() + 1) / 2, bytes=True)
    tiles = colors.repeat(pixel, axis=2).repeat(pixel, axis=3)
    height, width = rows * pixel + GAP, columns * pixel + GAP  # of a picture and a gap
    canvas = np.zeros((down * height - GAP, across * width - GAP, 4), dtype=np.uint8)
    canvas[..., 3] = 255
    for i in range(down):
        for j in range(across):
            top, left = i * height, j * width
            canvas[top : top + rows * pixel, left : left + columns * pixel] = tiles[i, j]
    return canvas


def heat_map(weight: Tensor, title: str, causal: bool) -> Figure:
    """A translation model's A, and some of its rows against the distance to their position.

    Args:
        weight: (positions, positions); row t holds the weights of all positions in output t.
        title: for the picture.
        causal: rows end at their own position.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    matrix_axes, row_axes = figure.subplots(1, 2)
    limit = max(weight.abs().max().item(), 1e-12)
    picture = matrix_axes.imshow(
        weight.numpy(), cmap=COLORS, vmin=-limit, vmax=limit, interpolation="none"
    )
    figure.colorbar(picture, ax=matrix_axes)
    matrix_axes.set(title=title, xlabel="from position", ylabel="to position")
    length = len(weight)
    for row in sorted({length // 8, length // 4, length // 2}):
        end = row + 1 if causal else length
        row_axes.plot(np.arange(end) - row, weight[row, :end].numpy(), label=f"row {row}", lw=1)
    row_axes.axhline(0, color="black", lw=0.5)
    row_axes.set(title="rows", xlabel="distance from the row's own position", ylabel="weight")
    row_axes.legend()
    return figure


def sparsity(weight: Tensor, threshold: float) -> float:
    """Share of the entries below ``threshold`` times the largest absolute value (figure 3)."""
    size = weight.abs().flatten()
    return (size < threshold * size.max()).float().mean().item()


def sparsities(layers: Layers, threshold: float) -> dict[str, list[dict[str, float]]]:
    """Sparsity of every matrix; of the decoder's A, that of the lower triangle."""
    numbers: dict[str, list[dict[str, float]]] = {}
    for stack, members in layers.items():
        numbers[stack] = []
        for layer in members:
            entries = dict(sorted(layer.items()))
            if stack == "decoder":
                length = len(layer["A"])
                entries["A"] = layer["A"][torch.ones(length, length).tril().bool()]
            numbers[stack].append({k: sparsity(v, threshold) for k, v in entries.items()})
    return numbers


def sparsity_plot(numbers: dict[str, list[dict[str, float]]], threshold: float) -> Figure:
    """Sparsity against the layer: one plot for each stack, one curve for each matrix."""
    figure = Figure(figsize=(5 * len(numbers), 3.5), layout="constrained")
    for axes, (stack, members) in zip(
        figure.subplots(1, len(numbers), squeeze=False)[0], numbers.items(), strict=True
    ):
        for letter in members[0]:
            axes.plot([100 * layer[letter] for layer in members], marker="o", label=letter)
        axes.set(
            title=f"{stack}: entries below {threshold:.0%} of the largest",
            xlabel="layer",
            ylabel="%",
            ylim=(0, 100),
            xticks=range(len(members)),
        )
        axes.legend()
    return figure


def png(pixels: np.ndarray) -> bytes:
    """A PNG file with exactly these RGBA bytes (height, width, 4)."""
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return buffer.getvalue()


def rendered(figure: Figure) -> bytes:
    """A PNG file of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def page(files: Mapping[str, bytes], title: str) -> str:
    """An HTML page that holds all PNG files and links to every file by name."""
    parts = []
    for name, content in files.items():
        link = f'<a href="{name}">{name}</a>'
        if name.endswith(".png"):
            data = base64.b64encode(content).decode()
            parts.append(
                f'<figure><img src="data:image/png;base64,{data}" alt="{name}">'
                f"<figcaption>{link}</figcaption></figure>"
            )
        else:
            parts.append(f"<p>{link}</p>")
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n"
        "<style>body{font-family:sans-serif} figure{display:inline-block;margin:8px} "
        "img{max-width:100%}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n"
        "<p>Weights below zero are blue, above zero red. Rows of an image model: each small "
        "picture shows the weights from all patches to one of the central patches, scaled by the "
        f"largest of them.</p>\n{body}\n</html>\n"
    )


def write(path: Path, content: bytes) -> None:
    """Write a file; it appears complete or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
