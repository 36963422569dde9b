"""The newest and the best checkpoints of a training, in their order."""

import itertools
import logging
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import checkpoints

logger = logging.getLogger(__name__)

ENOUGH = {
    "epoch": "longer, without --no-epoch-checkpoints, and with a larger --keep-last-epochs",
    "update": "with --save-interval-updates N, and with a larger --keep-interval-updates",
}
"""How a training writes more checkpoints."""

RISES = {"bleu": True, "sacrebleu": True, "chrf": True, "accuracy": True} | dict.fromkeys(
    ("loss", "nll_loss", "ppl", "wer", "cer", "ter"), False
)
"""Whether a larger value is better, for metrics with a known name."""


def latest_checkpoints(
    folder: Path, count: int, *, by: str, upper_bound: int | None = None
) -> list[Path]:
    """The newest checkpoints of a training run, newest first.

    Args:
        folder: fairseq's ``--save-dir``.
        count: number of checkpoints.
        by: ``"epoch"`` (checkpointN.pt) or ``"update"`` (checkpoint_E_N.pt).
        upper_bound: leave out checkpoints with a higher epoch or update.

    Raises:
        UserError: if the folder holds fewer, or they are of two trainings.
    """
    pattern = {"epoch": r"checkpoint(\d+)\.pt", "update": r"checkpoint_\d+_(\d+)\.pt"}[by]
    matches = ((path, re.fullmatch(pattern, path.name)) for path in folder.glob("*.pt"))
    numbers = {path: int(match[1]) for path, match in matches if match}
    most = math.inf if upper_bound is None else upper_bound
    found = {path: number for path, number in numbers.items() if number <= most}
    if len(found) < count:
        raise UserError(
            f"--inputs {folder} holds {len(found)} {by} checkpoints, but {count} were asked for: "
            f"ask for fewer, or train {ENOUGH[by]}."
        )
    chosen = sorted(found, key=found.__getitem__, reverse=True)[:count]
    states: dict[Path, dict[str, Any]] = {}
    for path in found:
        with suppress(UserError):  # reading the chosen ones will name them
            states[path] = checkpoints.read(path, only_look=True)
    _check_leftovers(chosen, {path: found[path] for path in states}, states)
    return chosen


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
            "ask for fewer, or train with --keep-best-checkpoints N."
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
    updates = {path: checkpoints.updates(state) for path, state in states.items()}
    _check_leftovers(chosen, updates, states)
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


def _check_leftovers(
    chosen: Sequence[Path], order: Mapping[Path, int], states: Mapping[Path, Mapping[str, Any]]
) -> None:
    """Look for checkpoints of an earlier training among the chosen ones.

    A later training overwrites the first of them alone. Its own were written after those of the
    earlier one, although they come before them. The files of a copied folder may have any times,
    but a copy usually takes less time than passes between two checkpoints of a training.

    Args:
        chosen: the checkpoints that will be used.
        order: of all checkpoints of this kind, the numbers of their epochs or updates.
        states: what is in them, if they can be read.

    Raises:
        UserError: if they are of two trainings; where that is not certain, it is a warning.
    """
    times = {path: time for path in order if (time := _training_time(states[path])) is not None}
    known = sorted(times, key=order.__getitem__)
    steps = [times[b] - times[a] for a, b in itertools.pairwise(known) if times[b] > times[a]]
    if not steps:
        return
    written = {path: path.stat().st_mtime for path in known}
    for path in (path for path in known if path in chosen):
        before = (other for other in known if order[other] < order[path])
        newest = max(before, key=written.__getitem__, default=path)
        if written[newest] - written[path] <= statistics.median(steps):
            continue
        told = f"{newest} was written later than {path}, although it comes before it"
        advice = "remove what the earlier training has left, or name the files to average"
        if checkpoints.updates(states[newest]) >= checkpoints.updates(states[path]) >= 0:
            raise UserError(f"{told}: they are of two trainings; {advice}.")
        logger.warning("%s: if they are of two trainings, %s.", told, advice)
        return


def _training_time(state: Mapping[str, Any]) -> float | None:
    """The seconds that a checkpoint was trained for."""
    extra = state.get("extra_state")
    found = extra.get("previous_training_time") if isinstance(extra, Mapping) else None
    return found if isinstance(found, float) and math.isfinite(found) else None
