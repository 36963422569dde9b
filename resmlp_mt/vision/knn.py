"""``python -m resmlp_mt.vision.knn``: weighted nearest neighbours on frozen features.

    python -m resmlp_mt.vision.knn CHECKPOINT --data DIR -k 10 20

The evaluation of DINO (Caron et al. 2021, arXiv:2104.14294, section 4 and appendix F.1), which is
that of Wu et al. 2018 (arXiv:1805.01978): the k training images whose features have the highest
cosine similarity s to those of a validation image vote for their classes, each with the weight
exp(s / temperature).

Both sets go through the evaluation transform. Similarities are float32, votes float64. Of equally
similar images the earlier one in the training set is nearer; of classes with equal votes the
earlier one comes first, so that a class without a vote can count for the top 5, as in DINO.
"""

import argparse
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from sklearn.metrics import accuracy_score
from torch import Tensor
from torch.nn import functional as F

from resmlp_mt.errors import UserError
from resmlp_mt.vision.data import create_dataset, create_transform
from resmlp_mt.vision.images import BadImage, SkipCounter
from resmlp_mt.vision.inference import (
    Classifier,
    add_loader_options,
    add_model_options,
    batches,
    check_outputs,
    data_of,
    finite,
    load_classifier,
    machine,
    positive,
    write_json,
)

TOP = 5
#: similarities computed at once: about 100 MB with what selecting the largest needs
QUERIES, KEYS = 1024, 8192


def nearest(
    queries: Tensor, keys: Tensor, k: int, chunk_size: tuple[int, int] = (QUERIES, KEYS)
) -> tuple[Tensor, Tensor]:
    """The k keys of highest inner product with each query, the highest first.

    Of equal ones the earlier key comes first. The memory beyond inputs and outputs does not grow
    with the number of queries or keys.

    Args:
        queries: (queries, dim).
        keys: (keys, dim), at least k.
        k: how many to find.
        chunk_size: how many queries and keys are compared at once.

    Returns:
        inner products and indices of the keys, both (queries, k).
    """
    found = []
    for some_queries in queries.split(chunk_size[0]):
        products = queries.new_empty(len(some_queries), 0)
        indices = torch.empty(len(some_queries), 0, dtype=torch.long, device=queries.device)
        start = 0
        for some_keys in keys.split(chunk_size[1]):
            stop = start + len(some_keys)
            numbers = torch.arange(start, stop, device=queries.device)
            products = torch.cat((products, some_queries @ some_keys.T), 1)
            indices = torch.cat((indices, numbers.expand(len(some_queries), -1)), 1)
            if products.size(1) > k:  # topk alone does not say which of equal values it takes
                smallest = products.topk(k).values[:, -1:]
                above, equal = products > smallest, products == smallest
                rest = k - above.sum(1, keepdim=True)
                chosen = above | (equal & (equal.cumsum(1) <= rest))
                products = products[chosen].view(-1, k)
                indices = indices[chosen].view(-1, k)
            start = stop
        products, order = products.sort(descending=True, stable=True)
        found.append((products, indices.gather(1, order)))
    products, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return products, indices


def vote(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """The classes in the order of their votes, the sums of exp(similarity / temperature).

    Votes are taken relative to the nearest neighbour's, which changes no order and cannot
    overflow at low temperatures.

    Args:
        similarity: cosine similarity of each neighbour, (images, k), the highest first.
        labels: class of each neighbour, (images, k).
        num_classes: number of classes.
        temperature: positive.

    Returns:
        class indices (images, 5 at most), most votes first; of equal ones the lower index.
    """
    similarity = similarity.double()
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(weights), num_classes).scatter_add_(1, labels, weights)
    return votes.sort(descending=True, stable=True).indices[:, :TOP]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m resmlp_mt.vision.knn",
        description="Weighted k-nearest-neighbour classification on frozen features, as in DINO.",
    )
    add_model_options(parser)
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="DATA",
        help="DIR, cifar10-tar FILE, wds DIR or digits, with its parts train and val "
        "(default: what a checkpoint was trained on)",
    )
    parser.add_argument(
        "-k",
        "--nb-knn",
        nargs="+",
        type=positive,
        default=[20],
        metavar="K",
        help="neighbours that vote, one or more numbers (default: 20)",
    )
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=0.07,
        metavar="T",
        help="of the weights exp(similarity / T) (default: %(default)s)",
    )
    add_loader_options(parser)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write a report")
    return parser.parse_args(argv)


def _temperature(text: str) -> float:
    try:
        temperature = float(text)
    except ValueError:
        temperature = math.nan
    if not 0 < temperature < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return temperature


def extract(
    classifier: Classifier, loader: Iterable[tuple[Tensor, Tensor, list[BadImage]]]
) -> tuple[Tensor, Tensor]:
    """Features of length 1 (images, dim) and classes (images,), on the CPU.

    Raises:
        UserError: if the features are no finite numbers, or there are no images.
    """
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for images, targets, _ in loader:
        if len(images) > 0:
            with torch.inference_mode():
                batch = finite(classifier.features(images), classifier.name)
            features.append(F.normalize(batch))
            labels.append(targets)
    if not features:
        raise UserError("--data: none of the images of one of its parts could be read.")
    return torch.cat(features), torch.cat(labels)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: a sentence for the user, and exit status 1.
    """
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_outputs([args.json])
    classifier = load_classifier(args)
    data = data_of(args, classifier)
    transform = create_transform(classifier.data_config)
    train = create_dataset(data, "train", transform)
    val = create_dataset(data, "val", transform, classes=train.classes)
    counter = SkipCounter(args.on_error)
    keys, labels = extract(classifier, batches(train, args, counter))
    if max(args.nb_knn) > len(keys):
        raise UserError(
            f"-k {max(args.nb_knn)} is more than the {len(keys)} training images: give less."
        )
    queries, targets = extract(classifier, batches(val, args, counter))
    keys, queries = keys.to(args.device), queries.to(args.device)
    similarity, neighbours = (part.cpu() for part in nearest(queries, keys, max(args.nb_knn)))

    scores = []
    for k in args.nb_knn:
        top = vote(
            similarity[:, :k], labels[neighbours[:, :k]], len(train.classes), args.temperature
        )
        top1 = 100 * float(accuracy_score(targets, top[:, 0]))
        top5 = 100 * float((top == targets[:, None]).any(1).double().mean())
        scores.append({"k": k, "top1": top1, "top5": top5 if len(train.classes) > TOP else None})
    report = {
        "model": classifier.name,
        "weights": classifier.weights,
        "data": data,
        "data_config": classifier.data_config,
        "temperature": args.temperature,
        "train_images": len(keys),
        "val_images": len(queries),
        "skipped": counter.skipped,
        "scores": scores,
        "machine": machine(args.device),
    }
    if args.json is not None:
        write_json(report, args.json)
    print(
        f"{classifier.name} ({classifier.weights}), {len(queries)} images of {' '.join(data)}, val,"
        f" by {len(keys)} of train, temperature {args.temperature}"
    )
    for score in scores:
        top5_text = "" if score["top5"] is None else f", top-5 {score['top5']:.2f} %"
        print(f"k {score['k']}: top-1 {score['top1']:.2f} %{top5_text}")
    if counter.skipped:
        print(f"{len(counter.skipped)} images could not be read and were left out")


if __name__ == "__main__":
    main()
