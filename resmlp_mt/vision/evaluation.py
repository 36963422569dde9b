"""Accuracy, confusion and throughput of a classifier; see docs/vision_evaluation.md."""

import csv
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from tabulate import tabulate
from torch import Tensor

from resmlp_mt.errors import UserError
from resmlp_mt.files import check_outputs, check_standard_output, output_file, write_json
from resmlp_mt.vision.class_map import ORDERED, TAKEN, check_order, check_same
from resmlp_mt.vision.classifier import Classifier, load_classifier
from resmlp_mt.vision.data import create_dataset, is_one_split
from resmlp_mt.vision.distributed import find_device, measured_on
from resmlp_mt.vision.evaluation_options import EvaluationOptions
from resmlp_mt.vision.image_dataset import ImageDataset, UnknownClassesError
from resmlp_mt.vision.images import SkipCounter
from resmlp_mt.vision.loader import Batch, batches
from resmlp_mt.vision.transforms import create_transform

TOP = 5
#: largest number of classes that are printed, and named in the picture
FEW_CLASSES = 50


@dataclass
class ClassReport:
    """One class, in per cent; None instead of a division by zero."""

    name: str
    images: int
    top1: float | None
    precision: float | None
    f1: float | None


@dataclass
class Report:
    """Results and settings; accuracies in per cent, throughput in images per second.

    ``top5`` is None for five classes or fewer. ``images_per_second`` is for everything from the
    file to the prediction, ``model_images_per_second`` for the model alone. Neither counts the
    first batch, unless it is the only one.
    """

    model: str
    weights: str
    data: list[str]
    split: str
    data_config: dict[str, Any]
    images: int
    skipped: dict[str, str]
    top1: float
    top5: float | None
    classes: list[ClassReport]
    images_per_second: float
    model_images_per_second: float
    batch_size: int
    workers: int
    machine: dict[str, Any]


def evaluate(options: EvaluationOptions) -> None:
    """Evaluate, print the report and write the files that the options name.

    Raises:
        UserError: for a model or data that cannot be used.
    """
    check_standard_output(options.json, "--json")
    check_outputs(
        ("--json", options.json),
        ("--confusion-csv", options.confusion_csv),
        ("--confusion-png", options.confusion_png),
    )
    if options.confusion_png is not None:
        import matplotlib  # noqa: F401  without its extra, an error before the work
    device = find_device(options.device)
    classifier = load_classifier(options, device, options.dtype, not options.use_train_size)
    data = classifier.data
    usual = "." if is_one_split(data, classifier.val_split) else classifier.val_split
    split = options.split or usual
    dataset, classes = labelled(classifier, data, split)
    counter = SkipCounter(options.on_error)
    loader = batches(dataset, options.batch_size, options.workers, device, counter)
    highest = min(TOP, classifier.num_classes)
    outputs = run(
        lambda images: classifier.logits(images).topk(highest).indices, loader, data, split
    )
    targets, top = outputs.targets, outputs.values
    report = Report(
        model=classifier.name,
        weights=classifier.weights,
        data=data,
        split=split,
        data_config=classifier.data_config,
        images=len(targets),
        skipped=counter.skipped,
        top1=100 * float(accuracy_score(targets, top[:, 0])),
        top5=100 * float((top == targets[:, None]).any(1).mean()) if len(classes) > TOP else None,
        classes=per_class(targets, top[:, 0], classes),
        images_per_second=outputs.images_per_second,
        model_images_per_second=outputs.model_images_per_second,
        batch_size=options.batch_size,
        workers=options.workers,
        machine=measured_on(device),
    )
    if options.json is not None:
        write_json(options.json, asdict(report))
    confusion = confusion_matrix(targets, top[:, 0], labels=np.arange(len(classes)))
    if options.confusion_csv is not None:
        with (
            output_file(options.confusion_csv) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            table = np.column_stack([classes, confusion]).tolist()
            csv.writer(file).writerows([["true / predicted", *classes], *table])
    if options.confusion_png is not None:
        with output_file(options.confusion_png) as temporary:
            confusion_figure(confusion, report).savefig(temporary, format="png", dpi=150)
    print(text_of(report))


def labelled(classifier: Classifier, data: list[str], split: str) -> tuple[ImageDataset, list[str]]:
    """The images, with the classifier's outputs as targets, and the names of the outputs.

    Raises:
        UserError: if there is no such data, or the classifier lacks some of its classes.
    """
    transform, training = create_transform(classifier.data_config), classifier.train_split
    if classifier.classes is None:
        dataset = create_dataset(data, split, transform, training=training)
        outputs = classifier.num_classes
        if len(dataset.classes) != outputs:
            raise UserError(
                f"--data {' '.join(data)} has {len(dataset.classes)} classes, but "
                f"{classifier.name} has {outputs}: give the data that the weights are for."
            )
        check_order(dataset.classes, classifier.name)
        return dataset, dataset.classes
    try:
        dataset = create_dataset(
            data, split, transform, classifier.classes, training, select=classifier.select
        )
    except UnknownClassesError as error:
        if classifier.assumed:
            what = f"{classifier.name}{TAKEN}"
            check_same(classifier.classes, sorted(error.names), what, ORDERED)
        raise
    if dataset.classes != classifier.classes:  # data with class names of its own
        raise UserError(
            f"--data {' '.join(data)} has the classes {', '.join(dataset.classes[:3])}, ..., but "
            f"{classifier.name} knows {', '.join(classifier.classes[:3])}, ...: give the data that "
            "it was trained on, or data with its classes."
        )
    return dataset, classifier.classes


@dataclass
class Outputs:
    """What was computed of all images, (images, ...), their classes (images,), and the speed."""

    values: NDArray[Any]
    targets: NDArray[np.int64]
    images_per_second: float
    model_images_per_second: float


def run(
    compute: Callable[[Tensor], Tensor], loader: Iterable[Batch], data: list[str], split: str
) -> Outputs:
    """Compute something of all images of a split, also for nearest neighbours.

    Args:
        compute: images (batch, channels, height, width) -> (batch, ...), on the CPU.

    Raises:
        UserError: if there are no images, or the model computes no finite numbers.
    """
    values: list[Tensor] = []
    targets: list[Tensor] = []
    times = [time.perf_counter()]  # ends of the batches
    seconds: list[float] = []  # time in the model
    for images, batch_targets, _ in loader:
        if len(images) == 0:
            continue
        start = time.perf_counter()
        with torch.inference_mode():
            values.append(compute(images))  # on the CPU, so the device has finished
        times.append(time.perf_counter())
        seconds.append(times[-1] - start)
        targets.append(batch_targets)
    if not targets:
        raise UserError(f"--data {' '.join(data)}, {split}: none of its images could be read.")
    first = 1 if len(targets) > 1 else 0  # the first batch warms up
    timed = sum(len(batch) for batch in targets[first:])
    return Outputs(
        torch.cat(values).numpy(),
        torch.cat(targets).numpy(),
        timed / (times[-1] - times[first]),
        timed / sum(seconds[first:]),
    )


def per_class(
    targets: NDArray[np.int64], predicted: NDArray[np.int64], classes: Sequence[str]
) -> list[ClassReport]:
    """Accuracy (recall), precision and F1 of each class; inputs (images,)."""
    precision, recall, f1, images = precision_recall_fscore_support(
        targets, predicted, labels=np.arange(len(classes)), zero_division=np.nan
    )
    return [
        ClassReport(name, int(n), *(None if np.isnan(x) else 100 * float(x) for x in scores))
        for name, n, *scores in zip(classes, images, recall, precision, f1, strict=True)
    ]


def confusion_figure(confusion: NDArray[np.int64], report: Report) -> Any:
    """The confusion matrix (true, predicted) as a figure, each row as shares of its true class."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay  # which needs matplotlib too

    classes = [_plain(row.name) for row in report.classes]
    side = min(4 + 0.3 * len(classes), 20)
    axes = Figure(figsize=(side, side), layout="constrained").subplots()
    few = len(classes) <= FEW_CLASSES
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(shares, display_labels=classes if few else None).plot(
        ax=axes, include_values=few, values_format=".2f", xticks_rotation="vertical",
        text_kw={"fontsize": 6}, im_kw={"vmin": 0, "vmax": 1},
    )  # fmt: skip
    display.im_.colorbar.set_label("share of the images of the true class")
    what = f"{Path(report.model).name}, {report.images} images, top-1 {report.top1:.2f} %"
    axes.set_title(_plain(what), wrap=True)
    if not few:
        axes.set(xticks=[], yticks=[])
    return axes.figure


def _plain(name: str) -> str:
    """A name as matplotlib draws it: dollars do not begin formulas, and other bytes are marked."""
    return name.encode(errors="replace").decode().replace("$", r"\$")


def text_of(report: Report) -> str:
    """The report as text."""
    top5 = "" if report.top5 is None else f", top-5 {report.top5:.2f} %"
    lines = [
        f"{report.model} ({report.weights}) on {report.images} images of "
        f"{' '.join(report.data)}{'' if report.split == '.' else f', {report.split}'}",
        f"top-1 {report.top1:.2f} %{top5}",
        f"{report.images_per_second:.1f} images/s, the model alone "
        f"{report.model_images_per_second:.1f}: {report.machine['machine']}, "
        f"{report.machine['device']}, {report.machine['threads']} threads, batches of "
        f"{report.batch_size}, {report.workers} workers",
    ]
    if report.skipped:
        lines.append(f"{len(report.skipped)} images could not be read and were left out")
    if len(report.classes) <= FEW_CLASSES:
        table = [[row.name, row.images, row.top1, row.precision, row.f1] for row in report.classes]
        headers = ["class", "images", "top-1 %", "precision %", "F1 %"]
        names = [0]  # 007 and 1e3 stay as they are
        lines += [
            "",
            tabulate(table, headers, floatfmt=".2f", missingval="-", disable_numparse=names),
        ]
    return "\n".join(lines)
