"""``python -m resmlp_mt.vision.predict``: labels with probabilities for image files.

    python -m resmlp_mt.vision.predict CHECKPOINT photo.jpg folder/ --topk 3
    python -m resmlp_mt.vision.predict CHECKPOINT folder/ --output labels.csv --on-error skip

Results come in the order of the input, one for each file; a folder stands for the image files in
it and below it, by name. docs/vision_evaluation.md describes the formats.
"""

import argparse
import csv
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from resmlp_mt.errors import UserError
from resmlp_mt.vision.data import ImageDataset, create_transform
from resmlp_mt.vision.images import EXTENSIONS, SkipCounter
from resmlp_mt.vision.inference import (
    Classifier,
    add_loader_options,
    add_model_options,
    batches,
    check_outputs,
    finite,
    load_classifier,
    output_file,
    positive,
)

FORMATS = ("jsonl", "json", "csv")


@dataclass
class Prediction:
    """What is said about a file: labels with probabilities, the best first, or an error."""

    file: str
    labels: list[tuple[str, float]]
    error: str | None = None


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m resmlp_mt.vision.predict",
        description="Labels with probabilities for image files and folders of them.",
    )
    add_model_options(parser)
    parser.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help="image or folder")
    add_loader_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--topk",
        type=positive,
        default=5,
        metavar="K",
        help="labels for each image, all if there are fewer (default: %(default)s)",
    )
    output.add_argument(
        "--output", type=Path, metavar="FILE", help="file to write (default: standard output)"
    )
    output.add_argument(
        "--format", choices=FORMATS, help="default: as the name of --output ends, else jsonl"
    )
    args = parser.parse_intermixed_args(argv)
    if args.model is not None and args.checkpoint is not None:  # then there is no checkpoint
        args.inputs.insert(0, args.checkpoint)
        args.checkpoint = None
    if args.format is None:
        suffix = args.output.suffix.lower().lstrip(".") if args.output else "jsonl"
        args.format = suffix
        if args.format not in FORMATS:
            parser.error(f"--output {args.output}: give --format csv, json or jsonl")
    return args


def find_images(inputs: Iterable[Path]) -> list[str]:
    """The files that are named, and those with an image's extension in folders, sorted by name.

    Raises:
        UserError: if there is no such file or folder, or a folder without images.
    """
    files: list[str] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(
                os.path.join(folder, name)
                for folder, _, names in os.walk(path)
                for name in names
                if name.lower().endswith(EXTENSIONS)
            )
            if not inside:
                raise UserError(f"{path} holds no images ({', '.join(EXTENSIONS)}).")
            files += inside
        elif path.exists():
            files.append(str(path))
        else:
            raise UserError(f"there is no file or folder {path}.")
    if not files:
        raise UserError("no images: name files or folders behind the checkpoint.")
    return files


def predict(
    classifier: Classifier, files: Sequence[str], topk: int, args: argparse.Namespace
) -> Iterator[Prediction]:
    """Predictions for all files in their order.

    Raises:
        UserError: at a bad image unless ``--on-error skip``; if the model computes no numbers.
    """
    numbers = range(len(files))
    dataset = ImageDataset(files, numbers, [], create_transform(classifier.data_config))
    start = 0
    for images, indices, bad in batches(dataset, args, SkipCounter(args.on_error)):
        results = {}
        if len(images) > 0:
            with torch.inference_mode():
                logits = finite(classifier.logits(images), classifier.name)
            probabilities, classes = logits.softmax(1).topk(min(topk, logits.size(1)))
            names = classifier.classes or [str(number) for number in range(logits.size(1))]
            for index, row, values in zip(
                indices.tolist(), classes.tolist(), probabilities.tolist(), strict=True
            ):
                labels = [names[number] for number in row]
                pairs = list(zip(labels, values, strict=True))
                results[index] = Prediction(files[index], pairs)
        unread = iter(bad)
        for index in numbers[start : start + len(indices) + len(bad)]:
            yield results.get(index) or Prediction(files[index], [], next(unread).reason)
        start += len(indices) + len(bad)


def write(predictions: Iterable[Prediction], file: TextIO, kind: str, topk: int) -> int:
    """Write predictions as csv, json (an array) or jsonl; returns how many are errors."""
    errors = 0
    before = "[\n" if kind == "json" else ""
    writer = csv.writer(file, lineterminator="\n")
    if kind == "csv":
        ranks = range(1, topk + 1)
        pairs = [name for rank in ranks for name in (f"label_{rank}", f"probability_{rank}")]
        writer.writerow(["file", *pairs, "error"])
    for row in predictions:
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
    if kind == "json":
        file.write("\n]\n")
    return errors


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: a sentence for the user, and exit status 1.
    """
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` is no error
    check_outputs([args.output])
    classifier = load_classifier(args)
    files = find_images(args.inputs)
    topk = min(args.topk, classifier.num_classes)
    predictions = predict(classifier, files, topk, args)
    if args.output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
        try:
            errors = write(predictions, sys.stdout, args.format, topk)
            sys.stdout.flush()
        except OSError as error:
            raise UserError(f"standard output cannot be written: {error.strerror}.") from error
    else:
        with (
            output_file(args.output) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            errors = write(predictions, file, args.format, topk)
    if errors:
        print(f"{errors} of {len(files)} images could not be read", file=sys.stderr)


if __name__ == "__main__":
    main()
