"""Checkpoints in the order of their scores in validation."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import checkpoints, leftovers

RISES = {"bleu": True, "sacrebleu": True, "chrf": True, "accuracy": True} | dict.fromkeys(
    ("loss", "nll_loss", "ppl", "wer", "cer", "ter"), False
)
"""Whether a larger value is better, for metrics with a known name."""


def best_checkpoints(folder: Path, count: int, maximize: bool | None = None) -> list[Path]:
    """The checkpoints that fairseq's ``--keep-best-checkpoints`` wrote, best first.

    Their value is taken from the file. The value in the name is rounded and ends in a random digit.

    Args:
        folder: fairseq's ``--save-dir``.
        count: number of checkpoints.
        maximize: whether a larger value is better; by default as in the training, if the metric's
            name does not contradict it.

    Raises:
        UserError: if the folder holds fewer, or of several metrics, or the order is not known.
    """
    pattern = re.compile(r"checkpoint\.best_(.+)_(-?\d+(\.\d+)?|-?inf\d*|nan\d*)\.pt")
    matches = ((path, pattern.fullmatch(path.name)) for path in folder.glob("*.pt"))
    found = {path: match[1] for path, match in matches if match}
    if len(found) < count:
        raise UserError(
            f"--inputs {folder} holds {len(found)} best checkpoints, but {count} were asked for: "
            "fairseq-train --keep-best-checkpoints N writes such (checkpoint.best_METRIC_VALUE.pt)."
        )
    metrics = sorted(set(found.values()))
    if len(metrics) > 1:
        raise UserError(
            f"--inputs {folder} holds the best checkpoints by {' and '.join(metrics)}: name the "
            "files to average."
        )
    states = {path: checkpoints.read(path, only_look=True) for path in found}
    if maximize is None:
        maximize = _direction(folder, metrics[0], list(states.values()))
    values = {path: _value(state, path) for path, state in states.items()}

    def order(path: Path) -> tuple[bool, float, str]:
        value = values[path]
        return math.isnan(value), -value if maximize else value, path.name

    chosen = sorted(found, key=order)[:count]
    updates = {path: leftovers.updates(state) for path, state in states.items()}
    leftovers.check(chosen, updates, states)
    return chosen


def _direction(folder: Path, metric: str, states: list[dict[str, Any]]) -> bool:
    known = {RISES[metric]} if metric in RISES else set()
    for state in states:
        cfg = state.get("cfg")
        stored = cfg.get("checkpoint") if isinstance(cfg, Mapping) else None
        if isinstance(stored, Mapping) and stored.get("best_checkpoint_metric") == metric:
            known.add(bool(stored.get("maximize_best_checkpoint_metric")))
    if len(known) != 1:
        why = "its name and the training disagree" if known else "nothing says so"
        raise UserError(
            f"--inputs {folder}: is a larger {metric} better? {why.capitalize()}: give "
            "--maximize-best-checkpoint-metric or --no-maximize-best-checkpoint-metric."
        )
    return known.pop()


def _value(state: dict[str, Any], path: Path) -> float:
    extra = state.get("extra_state")
    value = extra.get("val_loss") if isinstance(extra, Mapping) else None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:  # a whole number, which no training writes
            raise UserError(
                f"{path} is damaged: its val_loss is larger than any number of a training."
            ) from None
    return float(re.sub(r"(inf|nan)\d*$", r"\1", path.stem.rpartition("_")[2]))
