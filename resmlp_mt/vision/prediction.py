"""Labels with probabilities for image files; docs/vision_evaluation.md describes the formats."""

import csv
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

import torch

from resmlp_mt.errors import UserError, reason
from resmlp_mt.files import check_outputs, is_hidden, output_file
from resmlp_mt.vision.classifier import Classifier, load_classifier
from resmlp_mt.vision.distributed import find_device
from resmlp_mt.vision.evaluation_options import FORMATS, PredictionOptions
from resmlp_mt.vision.image_dataset import ImageDataset
from resmlp_mt.vision.images import EXTENSIONS, ImageNames, SkipCounter
from resmlp_mt.vision.loader import Batch, batches
from resmlp_mt.vision.transforms import create_transform

logger = logging.getLogger(__name__)


@dataclass
class Prediction:
    """The result for a file: labels with probabilities, the best first, or an error."""

    file: str
    labels: list[tuple[str, float]]
    error: str | None = None


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be read: {reason(error)}.") from error


def _images_inside(root: Path) -> list[str]:
    """All images below a folder and its links, sorted by name; no folder is read twice.

    Raises:
        UserError: if a folder may not be read.
    """
    found: list[str] = []
    images = ImageNames(root)
    read: set[Path] = set()
    tops = [root]  # folders come before the links that lead to them
    while tops:
        top = tops.pop(0)
        if read and root.resolve().is_relative_to(top.resolve()):
            logger.warning("%s leads back to %s: left out", top, root)
            continue
        # it names links, but does not follow them
        for place, below, names in os.walk(top, onerror=_refuse):
            folder = Path(place)
            if folder.resolve() in read:
                logger.warning("%s leads to a folder that is read already: left out", folder)
                below.clear()
                continue
            read.add(folder.resolve())
            below[:] = sorted(name for name in below if not is_hidden(name))
            tops += [folder / name for name in below if (folder / name).is_symlink()]
            paths = (folder / name for name in names)
            found += [str(p) for p in paths if images.is_image(p.relative_to(root).as_posix())]
    images.warn()
    return sorted(found)


def find_images(inputs: Iterable[Path]) -> list[str]:
    """The named files, and the files with an image's extension in named folders, sorted by name.

    Raises:
        UserError: if a file or folder is missing, or a folder has no images.
    """
    files: list[str] = []
    for path in inputs:
        if path.is_dir():
            inside = _images_inside(path)
            if not inside:
                raise UserError(f"{path} holds no images ({', '.join(EXTENSIONS)}).")
            files += inside
        elif path.exists():
            files.append(str(path))
        else:
            raise UserError(f"{path} is not a file or folder: name images or folders of images.")
    if not files:
        raise UserError("no images: name files or folders after the checkpoint.")
    return files


def predictions(
    classifier: Classifier, files: Sequence[str], loader: Iterable[Batch], topk: int
) -> Iterator[list[Prediction]]:
    """Predictions for all files in their order, batch by batch.

    Args:
        classifier: the model.
        files: their names.
        loader: their batches, with indices of files as targets.
        topk: number of labels for each file, at most all classes.

    Raises:
        UserError: if the model computes no finite numbers.
    """
    names = classifier.classes or [str(number) for number in range(classifier.num_classes)]
    start = 0
    for images, indices, bad in loader:
        labels = {}  # by index
        if len(images) > 0:
            with torch.inference_mode():
                probabilities, classes = classifier.logits(images).softmax(1).topk(topk)
            for index, row, values in zip(indices.tolist(), classes, probabilities, strict=True):
                best = (names[number] for number in row.tolist())
                labels[index] = list(zip(best, values.tolist(), strict=True))
        unread = iter(bad)
        end = start + len(indices) + len(bad)
        yield [
            Prediction(files[index], labels[index])
            if index in labels
            else Prediction(files[index], [], next(unread).reason)
            for index in range(start, end)
        ]
        start = end


def write(found: Iterable[Sequence[Prediction]], file: TextIO, kind: str, topk: int) -> int:
    """Write predictions as csv, json (an array) or jsonl; returns the number of errors.

    Those of a batch can be read as soon as it is done.
    """
    errors = 0
    before = "[\n" if kind == "json" else ""
    writer = csv.writer(file, lineterminator="\n")
    if kind == "csv":
        ranks = range(1, topk + 1)
        pairs = [name for rank in ranks for name in (f"label_{rank}", f"probability_{rank}")]
        writer.writerow(["file", *pairs, "error"])
    for batch in found:
        for row in batch:
            errors += row.error is not None
            if kind == "csv":
                cells = [cell for pair in row.labels for cell in pair]
                padding = [""] * (2 * topk - len(cells))
                writer.writerow([row.file, *cells, *padding, row.error or ""])
            else:
                best = [{"label": label, "probability": value} for label, value in row.labels]
                content = {"predictions": best} if row.error is None else {"error": row.error}
                line = json.dumps({"file": row.file, **content})
                if kind == "json":
                    file.write(before + line)
                    before = ",\n"
                else:
                    file.write(line + "\n")
        file.flush()
    if kind == "json":
        file.write("\n]\n")
    return errors


def predict(options: PredictionOptions) -> None:
    """Write the predictions for all files and folders.

    Raises:
        UserError: for a model or a file that cannot be used.
    """
    kind = options.format
    if kind is None:
        kind = options.output.suffix.lower().lstrip(".") if options.output else "jsonl"
        if kind not in FORMATS:
            raise UserError(f"--output {options.output}: give --format csv, json or jsonl.")
    check_outputs([options.output])
    device = find_device(options.device)
    classifier = load_classifier(options, device, options.dtype)
    files = find_images(options.inputs)
    dataset = ImageDataset(files, range(len(files)), [], create_transform(classifier.data_config))
    counter = SkipCounter(options.on_error)
    loader = batches(dataset, options.batch_size, options.workers, device, counter)
    topk = min(options.topk, classifier.num_classes)
    found = predictions(classifier, files, loader, topk)
    if options.output is None:
        errors = write(found, sys.stdout, kind, topk)
    else:
        with (
            output_file(options.output) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            errors = write(found, file, kind, topk)
    if errors:
        print(f"{errors} of {len(files)} images could not be read", file=sys.stderr)
