"""The folder of a training, which no other training writes to, and the reports in it."""

import csv
import io
import itertools
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.files import LockedError, NoLocksError, locked, remove_unfinished, write_text
from resmlp_mt.vision.distributed import Process
from resmlp_mt.vision.training_options import TrainingOptions

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

Row = dict[str, Any]
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
    with refused(lambda error: f"--output {wanted} cannot be read: {reason(error)}.", OSError):
        return next(each for each in itertools.chain([wanted], beside) if _is_free(each, held))


def _is_free(folder: Path, held: ExitStack) -> bool:
    """Whether a folder has no training and none of its results; it is then held."""
    results = [folder / name for name in RESULTS]
    if any(map(Path.exists, results)):
        return False
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(folder))
        except LockedError:
            return False
        if any(map(Path.exists, results)):  # another training has just ended
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


class Summary:
    """The reports in an output folder, from ``epoch`` on: later events of a run are ignored."""

    def __init__(self, folder: Path, tensorboard: bool, epoch: int) -> None:
        self.folder = folder
        self.writer: SummaryWriter | None = None
        if tensorboard:
            from torch.utils import tensorboard as events  # needs the package tensorboard

            self.writer = events.SummaryWriter(folder, purge_step=epoch)

    def report(self, history: list[Row]) -> None:
        """Write all rows, as :meth:`write`, and print the last one."""
        self.write(history)
        row = history[-1]
        values = {key: value for key, value in row.items() if key not in ("epoch", "updates")}
        if self.writer:
            for key, value in values.items():
                self.writer.add_scalar(key, value, row["epoch"])
            self.writer.flush()
        shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        tqdm.write(f"epoch {row['epoch']}: {shown}")

    def write(self, history: list[Row]) -> None:
        """Write summary.csv, completely or not at all.

        Raises:
            UserError: if it cannot be written.
        """
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(history[-1]), lineterminator="\n")
        table.writeheader()
        table.writerows(history)
        write_text(self.folder / "summary.csv", text.getvalue())


def score(row: Row) -> tuple[str, float]:
    """The score that ranks epochs: the accuracy, of the moving average if there is one."""
    name = "ema_top1" if "ema_top1" in row else "val_top1"
    return name, row[name]


def best_line(history: list[Row], folder: Path) -> str:
    """The line about the best epoch (the first of equal ones), its accuracy and its file."""
    best = max(history, key=lambda row: score(row)[1])
    name, value = score(best)
    return f"best {name} {value:.2f} % in epoch {best['epoch']}: {folder / 'best.pth'}"
