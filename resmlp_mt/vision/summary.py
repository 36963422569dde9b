"""Reports the epochs of a training: summary.csv, TensorBoard, printed lines."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from resmlp_mt.files import write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = dict[str, Any]


class Summary:
    """The reports in an output folder.

    Args:
        folder: folder for the reports.
        tensorboard: also write event files.
        epoch: the first epoch that is reported; later events of an earlier run are ignored.
    """

    def __init__(self, folder: Path, tensorboard: bool, epoch: int) -> None:
        self.folder = folder
        self.writer: SummaryWriter | None = None
        if tensorboard:
            from torch.utils import tensorboard as events  # needs the package tensorboard

            self.writer = events.SummaryWriter(folder, purge_step=epoch)

    def report(self, history: list[Row]) -> None:
        """Write all rows, and print the last one.

        Raises:
            UserError: if summary.csv cannot be written.
        """
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
