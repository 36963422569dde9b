"""Weights from files and other implementations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from resmlp_mt.vision.model import ResMLP


def load_weights(
    model: ResMLP,
    source: Mapping[str, Tensor] | str | Path,
    head: Literal["keep", "reset"] = "keep",
) -> None:
    """Not written yet."""
    raise NotImplementedError
