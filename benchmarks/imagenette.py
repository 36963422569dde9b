"""Trains ResMLP-S12 for one epoch of Imagenette with the paper's whole ImageNet recipe, on a CPU.

    python -m benchmarks.imagenette --data DIR --work DIR

DIR of --data has train/CLASS/IMAGE and val/CLASS/IMAGE, or is a .tar of them. This only proves that
the pipeline runs from files to a checkpoint and back: one epoch from random weights learns next to
nothing. Writes imagenette.json and imagenette.md beside this file.
"""

import argparse
import csv
import datetime
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import torch

from resmlp_mt.command_line import command
from resmlp_mt.files import write_text
from resmlp_mt.vision import train
from resmlp_mt.vision.distributed import measured_on
from resmlp_mt.vision.factory import load_model

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "configs/vision/resmlp_s12.yaml"
# One process on a CPU in place of the authors' GPUs: a small batch, and a learning rate in
# proportion to it.
BATCH_SIZE = 32
OVERRIDES = ["--epochs=1", "--warmup-epochs=0", f"--batch-size={BATCH_SIZE}", "--workers=0",
             f"--lr={5e-3 * BATCH_SIZE / 2048}"]  # fmt: skip


@command
def main() -> None:
    """Train, read the checkpoint back, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="or a .tar file")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.data if args.data.is_dir() else unpack(args.data, args.work / "data")
    start = time.monotonic()
    train.main([f"--config={CONFIG}", f"--data={folder}", f"--output={args.work}", *OVERRIDES])
    minutes = (time.monotonic() - start) / 60
    with (args.work / "summary.csv").open() as file:
        row = {key: float(value) for key, value in next(csv.DictReader(file)).items()}
    model, checkpoint = load_model(args.work / "best.pth")
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": measured_on(torch.device("cpu")),
        "config": CONFIG.name,
        "overrides": OVERRIDES,
        "seed": checkpoint["config"]["seed"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "minutes": minutes,
        **row,
    }
    write_text(HERE / "imagenette.json", json.dumps(results, indent=2) + "\n")
    write_text(
        HERE / "imagenette.md",
        "# One epoch of Imagenette through the ImageNet recipe\n\n"
        f"resmlp_s12 ({results['parameters'] / 1e6:.1f} M parameters, 10 classes) at 224 x 224, "
        f"configs/vision/{CONFIG.name} with {' '.join(OVERRIDES)}; one thread of "
        f"{results['machine']['machine']}, shared with other programs, PyTorch "
        f"{results['machine']['torch']}, {results['date']}.\n\n"
        "| updates | training loss | val loss | val top-1 % | images/s | minutes in all |\n"
        "|-|-|-|-|-|-|\n"
        f"| {row['updates']:.0f} | {row['train_loss']:.3f} | {row['val_loss']:.3f} "
        f"| {row['val_top1']:.1f} | {row['images_per_second']:.1f} | {minutes:.1f} |\n\n"
        "This shows that the pipeline runs, from image files through RandAugment, mixup, cutmix, "
        "random\nerasing, repeated augmentation, stochastic depth and LAMB to a checkpoint that "
        "loads again; after\none epoch from random weights, accuracy means nothing "
        "(10 % is chance).\n",
    )


def unpack(archive: Path, folder: Path) -> Path:
    """The folder above train/ of an archive of images."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.rglob("train")).parent


if __name__ == "__main__":
    main()
