"""Whether stored tensors can belong to a configuration, without building anything."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

MOST_LAYERS = 1000
LEAST_LIMIT = 4096  # positions that a configuration may always claim


def misfit(config: Mapping[str, Any], shapes: Mapping[str, Iterable[int]]) -> str | None:
    """The first size in a configuration that does not fit the tensors; None if all fit.

    A configuration may be hostile or damaged: a model with its sizes could fill the memory
    before the tensors are compared one by one.

    Args:
        config: the fields of ``ModelConfig``, or the known ones.
        shapes: shapes of the stored tensors, by name.
    """
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    for side in ("encoder", "decoder"):
        found = {m[1] for name in shapes if (m := re.match(rf"{side}\.layers\.(\d+)\.", name))}
        layers = config.get(f"{side}_layers", len(found))
        if layers != len(found):
            return f"{side}_layers is {layers}, but there are tensors of {len(found)}"
    for name, value in config.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if name == "longest_trained_source":  # not the size of a tensor
            continue
        least = 0 if name == "padding_idx" else 1
        most = largest
        if name.endswith("_layers"):
            most = MOST_LAYERS
        elif name.endswith("_positions"):  # with relative weights alone, no tensor has this size
            most = max(2 * largest, LEAST_LIMIT)
        if not least <= value <= most:
            return f"{name} is {value}, but must be from {least} to {most} with these tensors"
    return None
