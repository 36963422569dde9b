"""Tells whether checkpoints in one folder are of one training."""

import itertools
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resmlp_mt.errors import UserError

logger = logging.getLogger(__name__)


def check(
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
    times = {path: time for path in order if (time := training_time(states[path])) is not None}
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
        if updates(states[newest]) >= updates(states[path]) >= 0:
            raise UserError(f"{told}: they are of two trainings; {advice}.")
        logger.warning("%s: if they are of two trainings, %s.", told, advice)
        return


def training_time(state: Mapping[str, Any]) -> float | None:
    """The seconds that a checkpoint was trained for."""
    extra = state.get("extra_state")
    found = extra.get("previous_training_time") if isinstance(extra, Mapping) else None
    return found if isinstance(found, float) and math.isfinite(found) else None


def updates(state: Mapping[str, Any]) -> int:
    """How many updates a checkpoint has seen; -1 if it does not tell."""
    try:
        return int(state["optimizer_history"][-1]["num_updates"])
    except (LookupError, TypeError, ValueError, OverflowError):
        return -1
