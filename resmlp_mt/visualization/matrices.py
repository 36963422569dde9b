"""The matrices A, B and C of a checkpoint's layers, and how sparse they are.

In the paper's notation A mixes over patches or positions; B and C are the two matrices of the
feed-forward layer, which mixes over channels.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resmlp_mt.errors import UserError, refused
from resmlp_mt.mixing import stored_mixing
from resmlp_mt.vision import state_dicts

Layers = dict[str, list[dict[str, Tensor]]]
"""For each stack ("image", "encoder" or "decoder") and each layer, the matrices "A", "B" and "C";
with several heads "A1", "A2", ..."""

NAME = re.compile(r"(?:(encoder|decoder)\.layers|blocks)\.(\d+)\.(token_mixing|ffn)\.(.+)")
LAYER = re.compile(r"(?<![a-z_])((encoder|decoder)\.layers|blocks)\.\d+\.")
LETTERS = {"fc1.weight": "B", "fc2.weight": "C"}
PARTS = ("token_mixing.weight", *(f"ffn.{part}" for part in LETTERS))


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """The contents of an image or translation checkpoint, read by the safe loader.

    Raises:
        UserError: if the file is missing, damaged, or has more than data.
    """
    if any(path.glob("dict.*.txt")) and (path / "config.json").exists():
        raise UserError(
            f"{path} is a folder from python -m resmlp_mt.export, which multiplies matrices with "
            "others: give its checkpoint."
        )
    return state_dicts.read_weights(path)


def state_dict(source: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The parameters in a checkpoint under our names, as weights are found for a model.

    A translation checkpoint has them under ``model``, where every other command reads them too;
    fairseq's ``--store-ema`` keeps an average beside them.

    Raises:
        UserError: if there are no parameters.
    """
    match source:
        case {"model": Mapping() as model} if any(
            (layer := LAYER.search(str(key))) and layer[2] for key in model
        ):
            source = model
    names = (name for _, named in state_dicts.dictionaries(source) for name in named)
    layers = {match[0] for name in names if (match := LAYER.search(name))}
    expected = dict.fromkeys(f"{layer}{part}" for layer in layers for part in PARTS)
    return state_dicts.own_names(state_dicts.state_dict(source, expected, name))


def matrices(state: Mapping[str, Tensor], name: str, positions: int | None = None) -> Layers:
    """A, B and C of every layer; the decoder's A is lower triangular.

    A translation model's A is that for sentences of ``positions``, or fewer if it has fewer.

    Raises:
        UserError: if the state dict has no mixing matrices.
    """
    found: dict[str, dict[int, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    mixings: dict[tuple[str, int], dict[str, Tensor]] = defaultdict(dict)
    for key, value in state.items():
        match = NAME.fullmatch(key)
        if match is None:
            continue
        stack, index, part, parameter = match[1] or "image", int(match[2]), match[3], match[4]
        if not value.float().isfinite().all():
            raise UserError(f"{name} holds numbers that are not finite, in {key}.")
        if part == "token_mixing":
            mixings[stack, index][parameter] = value.float()
        elif parameter in LETTERS:
            found[stack][index][LETTERS[parameter]] = value.float()
    for (stack, index), parameters in mixings.items():
        if stack == "image":
            heads = [parameters["weight"]] if "weight" in parameters else []
        else:
            with refused(lambda error: f"{name}: {error}", ValueError):
                mixing = stored_mixing(parameters, causal=stack == "decoder")
            longest = mixing.max_positions if mixing else 0
            heads = [*mixing.matrix(min(positions or longest, longest)).detach()] if mixing else []
        for number, matrix in enumerate(heads, 1):
            found[stack][index]["A" if len(heads) == 1 else f"A{number}"] = matrix
    layers = {stack: [members[i] for i in sorted(members)] for stack, members in found.items()}
    if not layers or any(not a_of(layer) for members in layers.values() for layer in members):
        raise UserError(
            f"{name} has no linear mixing matrices: expected a checkpoint of resmlp_mt, or weights "
            "of timm's or the authors' ResMLP."
        )
    return layers


def a_of(layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mixing matrices of a layer, one for each head."""
    return {letter: matrix for letter, matrix in layer.items() if letter.startswith("A")}


def grid_of(source: Mapping[str, Any], tokens: int, given: Sequence[int] | None) -> tuple[int, int]:
    """Rows and columns of patches: as given, from the checkpoint, or a square.

    Raises:
        UserError: if the grid does not have ``tokens`` patches or cannot be known.
    """
    if given is not None:
        if given[0] * given[1] != tokens:
            raise UserError(
                f"--grid {given[0]} {given[1]} has {given[0] * given[1]} patches, but the mixing "
                f"matrices have {tokens}."
            )
        return given[0], given[1]
    grid = state_dicts.checkpoint_grid(source)
    if grid is not None and math.prod(grid) == tokens:
        return grid
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(
            f"the mixing matrices are for {tokens} patches, which do not make a square: name "
            "their grid with --grid ROWS COLUMNS."
        )
    return side, side


def central(grid: tuple[int, int], patches: int) -> tuple[range, range]:
    """Rows and columns of the square of central patches; fewer if the grid is smaller."""
    taken = [min(patches, size) for size in grid]
    first = [(size - number) // 2 for size, number in zip(grid, taken, strict=True)]
    rows, columns = (range(a, a + n) for a, n in zip(first, taken, strict=True))
    return rows, columns


def row_images(weight: Tensor, grid: tuple[int, int], patches: int) -> Tensor:
    """Rows of a mixing matrix as images.

    Args:
        weight: (rows * columns) squared, patches row by row.
        grid: rows and columns.
        patches: side of the square of :func:`central` patches.

    Returns:
        (patches, patches, rows, columns): the weights from all patches to each central patch.
    """
    rows, columns = central(grid, patches)
    return weight.view(*grid, *grid)[rows.start : rows.stop, columns.start : columns.stop]


def sparsity(weight: Tensor, threshold: float) -> float:
    """Share of the entries below ``threshold`` times the largest absolute value (figure 3)."""
    size = weight.abs().flatten()
    return (size < threshold * size.max()).float().mean().item()


def sparsities(layers: Layers, threshold: float) -> dict[str, list[dict[str, float]]]:
    """Sparsity of every matrix; for the decoder's A, of its lower triangle."""
    numbers: dict[str, list[dict[str, float]]] = {}
    for stack, members in layers.items():
        numbers[stack] = []
        for layer in members:
            entries = dict(sorted(layer.items()))
            if stack == "decoder":
                for letter, matrix in a_of(layer).items():
                    entries[letter] = matrix[torch.ones_like(matrix).tril().bool()]
            numbers[stack].append({k: sparsity(v, threshold) for k, v in entries.items()})
    return numbers
