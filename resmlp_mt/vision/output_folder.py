"""The folder of a training, which no other training writes to."""

import itertools
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from resmlp_mt.errors import UserError, reason
from resmlp_mt.files import LockedError, NoLocksError, locked, remove_unfinished
from resmlp_mt.vision.distributed import Process
from resmlp_mt.vision.training_options import TrainingOptions

logger = logging.getLogger(__name__)

#: results of a training; the large last.pth may be gone, or best.pth come from elsewhere
RESULTS = ("last.pth", "best.pth", "summary.csv")


def hold_folder(options: TrainingOptions, process: Process, held: ExitStack) -> Path:
    """``--output``, or NAME-1, NAME-2, ... if it has a training, also one that has just begun.

    The first process holds the lock of the folder until ``held`` is closed.

    Raises:
        UserError: in all processes, if the folder cannot be used, or ``--resume`` goes on in one
            where another training is at work.
    """
    chosen, mistake = str(options.output), ""
    if process.rank == 0:
        try:
            chosen = str(_hold(options.output, options.resume, held))
        except UserError as error:
            mistake = str(error)
    chosen, mistake = process.of_first((chosen, mistake))
    if mistake:
        raise UserError(mistake)
    if Path(chosen) != options.output:
        logger.info("%s already holds a training: writing to %s", options.output, chosen)
    return Path(chosen)


def _hold(wanted: Path, resume: Path | None, held: ExitStack) -> Path:
    if resume and resume.parent.resolve() == wanted.resolve():
        held.enter_context(_locked(wanted))
        return wanted
    named = wanted.resolve() if wanted.name in ("", "..") else wanted  # . and .. have no name
    beside = (named.with_name(f"{named.name}-{number}") for number in itertools.count(1))
    try:
        return next(
            folder for folder in itertools.chain([wanted], beside) if _is_free(folder, held)
        )
    except OSError as error:
        raise UserError(f"--output {wanted} cannot be read: {reason(error)}.") from error


def _is_free(folder: Path, held: ExitStack) -> bool:
    """Whether a folder has no training and none of its results; it is then held.

    Raises:
        OSError, UserError: if that cannot be known.
    """

    def has_results() -> bool:
        return any((folder / name).exists() for name in RESULTS)

    if has_results():
        return False
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(folder))
        except LockedError:
            return False
        if has_results():  # another training has just ended
            return False
        held.enter_context(stack.pop_all())
        return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; where the file system has none, warn and hold nothing."""
    taken = f"another training is writing to {folder}: wait for its end, or give another --output."
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", taken, "--output"))
        except NoLocksError as error:
            logger.warning("%s Until then, start no other training with this --output.", error)
        else:
            for name in (*RESULTS, "args.yaml"):
                remove_unfinished(folder / name)
        yield
