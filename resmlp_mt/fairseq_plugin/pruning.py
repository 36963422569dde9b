"""``--encoder-layers-to-keep`` and ``--decoder-layers-to-keep``: load some layers of a checkpoint.

If only one of the options is given, fairseq's own pruning loses the layers of the other side.
"""

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from resmlp_mt.errors import UserError

SIDES = ("encoder", "decoder")


def kept(cfg: Any, side: str) -> list[int] | None:
    """The layers to keep, or None for all.

    Raises:
        UserError: if the option is not a list of increasing numbers.
    """
    given = getattr(cfg, f"{side}_layers_to_keep", None)
    if not given:
        return None
    try:
        numbers = [int(number) for number in given.split(",")]
    except ValueError:
        numbers = []
    if not numbers or numbers != sorted(set(numbers)) or numbers[0] < 0:
        raise UserError(
            f"--{side}-layers-to-keep must be increasing numbers, such as 0,2,4, but is {given}."
        )
    return numbers


def count_kept(cfg: Any) -> None:
    """Set the numbers of layers to those that are kept."""
    for side in SIDES:
        numbers = kept(cfg, side)
        if numbers is not None:
            setattr(cfg, f"{side}_layers", len(numbers))


def check_overrides(
    overrides: Mapping[str, Any], stored: Mapping[str, Any], parameters: Iterable[str], path: Path
) -> None:
    """Refuse layers of ``--model-overrides`` that a checkpoint does not have.

    :func:`pruned` does not notice them if it keeps as many layers as the checkpoint has.

    Args:
        overrides: the options that are given.
        stored: those of the model in the checkpoint; with the same value, it is pruned already.
        parameters: their names.
        path: of the checkpoint.

    Raises:
        UserError: naming the option.
    """
    names = list(parameters)
    for side in SIDES:
        option = f"{side}_layers_to_keep"
        numbers = kept(argparse.Namespace(**overrides), side)
        if numbers is not None and overrides[option] != stored.get(option):
            _check_there(numbers, set(_layers(names, side).values()), side, path)


def _layers(parameters: Iterable[str], side: str) -> dict[str, int]:
    """The layer of each parameter that belongs to one."""
    matches = (re.match(rf"{side}\.layers\.(\d+)\.", name) for name in parameters)
    return {match.string: int(match[1]) for match in matches if match}


def _check_there(numbers: list[int], there: set[int], side: str, where: object) -> None:
    if not set(numbers) <= there:
        raise UserError(
            f"--{side}-layers-to-keep names layer {max(numbers)}, but {where} has "
            f"{len(there)} {side} layers, from 0."
        )


def pruned(state: dict[str, Any], cfg: Any) -> dict[str, Any]:
    """The parameters of the kept layers, renumbered; ``cfg`` then describes the pruned model.

    A state without other layers is returned unchanged, because it was pruned before it was saved.

    Raises:
        UserError: if a layer to keep is not there.
    """
    for side in SIDES:
        numbers = kept(cfg, side)
        if numbers is None:
            continue
        layers = _layers(state, side)
        there = set(layers.values())
        if len(there) != len(numbers):
            _check_there(numbers, there, side, "the checkpoint")
            begin = f"{side}.layers."
            new_names = {
                name: name.replace(f"{begin}{old}.", f"{begin}{numbers.index(old)}.", 1)
                for name, old in layers.items()
                if old in numbers
            }
            dropped = layers.keys() - new_names.keys()
            state = {new_names.get(k, k): v for k, v in state.items() if k not in dropped}
        setattr(cfg, f"{side}_layers", len(numbers))
        setattr(cfg, f"{side}_layers_to_keep", None)
    return state
