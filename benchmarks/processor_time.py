"""fairseq-train with the processor time of training as its clock.

    python benchmarks/processor_time.py DATA ... --stop-time-hours 0.1667

--stop-time-hours then means hours of processor time, of all threads, since the first update,
without validation and the writing of checkpoints. A training that resumes from a checkpoint
continues with the time stored in it. After every validation the log has a line

    ... | clock | {"num_updates": "150", "seconds": 41.3}
"""

import json
import logging
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from fairseq_cli import train  # isort: skip  sets up logging, which fairseq must not do first
from fairseq import checkpoint_utils, trainer

logger = logging.getLogger("clock")


class TrainingClock:
    """Processor seconds of this process, except in calls that are passed to ``without``."""

    def __init__(self) -> None:
        self._left_out = 0.0
        self._stopped: float | None = None

    def time(self) -> float:
        """Replaces ``time.time`` in fairseq's trainer."""
        now = time.process_time() if self._stopped is None else self._stopped
        return now - self._left_out

    def without(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function while the clock is stopped."""
        self._stopped = time.process_time()
        try:
            return original(*args, **kwargs)
        finally:
            self._left_out += time.process_time() - self._stopped
            self._stopped = None


def main() -> None:
    clock = TrainingClock()
    trainer.time = SimpleNamespace(time=clock.time)

    def validate(original: Callable[..., Any], cfg: Any, training: Any, *args: Any) -> Any:
        losses = clock.without(original, cfg, training, *args)
        row = {
            "num_updates": str(training.get_num_updates()),
            "seconds": training.cumulative_training_time(),
        }
        logger.info(json.dumps(row))
        return losses

    train.validate = partial(validate, train.validate)
    checkpoint_utils.save_checkpoint = partial(clock.without, checkpoint_utils.save_checkpoint)
    train.cli_main()


if __name__ == "__main__":
    main()
