"""Labels with probabilities for image files; docs/vision_evaluation.md describes the formats."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.files import check_outputs, check_standard_output, output_file
from resmlp_mt.vision.classifier import Classifier, load_classifier
from resmlp_mt.vision.distributed import find_device
from resmlp_mt.vision.evaluation_options import FORMATS, PredictionOptions
from resmlp_mt.vision.image_dataset import ImageDataset
from resmlp_mt.vision.images import EXTENSIONS, ImageNames, SkipCounter, walk
from resmlp_mt.vision.loader import Batch, batches
from resmlp_mt.vision.transforms import create_transform

Prediction = dict[str, Any]
"""The result for a file: its name as "file", and "error" or "predictions", a list of labels with
probabilities, the best first."""


def find_images(inputs: Iterable[Path]) -> list[str]:
    """The named files, and the files with an image's extension in named folders, sorted by name.

    Raises:
        UserError: if a file or folder is missing or may not be read, or a folder has no images.
    """
    files: list[str] = []
    for path in inputs:
        if path.is_dir():
            names = ImageNames(path)
            with refused(lambda e: f"{e.filename} cannot be read: {reason(e)}.", OSError):  # type: ignore[attr-defined]
                below = [Path(place, name) for place, found in walk(str(path)) for name in found]
            inside = [str(p) for p in below if names.is_image(p.relative_to(path).as_posix())]
            names.warn()
            if not inside:
                raise UserError(f"{path} holds no images ({', '.join(EXTENSIONS)}).")
            files += sorted(inside)
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
    """Predictions for all files in their order, by batches with indices of files as targets.

    Raises:
        UserError: if the model computes no finite numbers.
    """
    names = classifier.classes or [str(number) for number in range(classifier.num_classes)]
    start = 0
    for images, indices, bad in loader:
        found = {}  # by index
        if len(images) > 0:
            with torch.inference_mode():
                probabilities, classes = classifier.logits(images).softmax(1).topk(topk)
            for index, row, values in zip(indices.tolist(), classes, probabilities, strict=True):
                best = zip(row.tolist(), values.tolist(), strict=True)
                found[index] = [{"label": names[n], "probability": value} for n, value in best]
        reasons = {each.name: each.reason for each in bad}
        end = start + len(indices) + len(bad)
        yield [
            {"file": files[index], "predictions": found[index]}
            if index in found
            else {"file": files[index], "error": reasons[files[index]]}
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
            errors += "error" in row
            if kind == "csv":
                cells = [cell for best in row.get("predictions", []) for cell in best.values()]
                cells += [""] * (2 * topk - len(cells))
                writer.writerow([row["file"], *cells, row.get("error", "")])
            elif kind == "json":
                file.write(before + json.dumps(row))
                before = ",\n"
            else:
                file.write(json.dumps(row) + "\n")
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
    check_standard_output(options.output, "--output")
    check_outputs(("--output", options.output))
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
