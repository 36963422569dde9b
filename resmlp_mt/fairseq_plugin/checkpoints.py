"""Checkpoints: what the safe loader may construct, and averages of several checkpoints."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import stored_arrays

# fairseq saves the options of its older components (adagrad, sgd, criterions without a dataclass)
# as a Namespace, and the sums behind --eval-bleu as integer arrays.
SAFE_GLOBALS: list[Any] = [argparse.Namespace, *stored_arrays.GLOBALS]


def allow_safe_globals() -> None:
    """Let ``torch.load(weights_only=True)`` construct the types in fairseq's checkpoints.

    Everything else that a checkpoint names is still refused.
    """
    torch.serialization.add_safe_globals(SAFE_GLOBALS)


def latest_checkpoints(
    folder: Path, count: int, *, by: str, upper_bound: int | None = None
) -> list[Path]:
    """The newest checkpoints of a training run, newest first.

    Args:
        folder: fairseq's ``--save-dir``.
        count: how many.
        by: ``"epoch"`` (checkpointN.pt), ``"update"`` (checkpoint_E_N.pt) or ``"best"``
            (checkpoint.best_METRIC_VALUE.pt, ordered by time of writing).
        upper_bound: leave out checkpoints with a higher epoch or update.

    Raises:
        UserError: if the folder holds fewer.
    """
    pattern = {
        "epoch": r"checkpoint(\d+)\.pt",
        "update": r"checkpoint_\d+_(\d+)\.pt",
        "best": r"checkpoint\.best_.+\.pt",
    }[by]
    found: list[tuple[float, Path]] = []
    for path in folder.glob("*.pt"):
        match = re.fullmatch(pattern, path.name)
        if match is None:
            continue
        order = path.stat().st_mtime if by == "best" else float(match.group(1))
        if by == "best" or upper_bound is None or order <= upper_bound:
            found.append((order, path))
    if len(found) < count:
        raise UserError(
            f"--inputs {folder} holds {len(found)} {by} checkpoints, but {count} were asked for."
        )
    return [path for _, path in sorted(found, reverse=True)[:count]]


def average(paths: list[Path]) -> dict[str, Any]:
    """A checkpoint whose parameters are the mean over several checkpoints.

    Everything but the parameters comes from the first file. Sums are taken in float64 and the
    mean has the parameter's own type.

    Raises:
        UserError: if a file is missing, is no fairseq checkpoint, or has other parameters.
    """
    allow_safe_globals()
    if not paths:
        raise UserError("--inputs names no checkpoint.")
    averaged = _load(paths[0])
    parameters: dict[str, Tensor] = averaged["model"]
    sums = {name: value.double() for name, value in parameters.items()}
    for path in paths[1:]:
        other = _load(path)["model"]
        if {n: v.shape for n, v in other.items()} != {n: v.shape for n, v in parameters.items()}:
            raise UserError(
                f"{path} has other parameters than {paths[0]}: average checkpoints of one run."
            )
        for name, value in other.items():
            sums[name] += value
    averaged["model"] = {
        name: _mean(total, len(paths), parameters[name].dtype) for name, total in sums.items()
    }
    return averaged


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; the file appears complete or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _mean(total: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    mean = total / count
    return mean.to(dtype) if dtype.is_floating_point else mean.round().to(dtype)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"--inputs {path} is not a file.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for broken or unsafe files
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as a fairseq checkpoint: {reason}") from error
    if not isinstance(state, dict) or "model" not in state:
        raise UserError(f"{path} is no fairseq checkpoint: it has no entry 'model'.")
    return state
