"""Weighted nearest neighbours on frozen features.

This is the evaluation of DINO (Caron et al. 2021, arXiv:2104.14294, section 4 and appendix F.1) and
of Wu et al. 2018 (arXiv:1805.01978). The k training images whose features have the highest cosine
similarity s to those of a validation image vote for their classes, each with the weight
exp(s / temperature).

Both sets go through the evaluation transform. Similarities are float32, votes float64. If two
images are equally similar, the earlier one in the training set is nearer. If two classes have equal
votes, the earlier one comes first; classes without votes come last. The top 5 are DINO's: the first
5 classes in this order, with k below 5 only the first k.
"""

from collections.abc import Iterable

import torch
from sklearn.metrics import accuracy_score
from torch import Tensor
from torch.nn import functional as F

from resmlp_mt.errors import UserError
from resmlp_mt.files import check_outputs, write_json
from resmlp_mt.vision.classifier import Classifier, load_classifier
from resmlp_mt.vision.data import create_dataset
from resmlp_mt.vision.distributed import find_device, measured_on
from resmlp_mt.vision.evaluation_options import NeighbourOptions
from resmlp_mt.vision.images import SkipCounter
from resmlp_mt.vision.loader import Batch, batches
from resmlp_mt.vision.transforms import create_transform

TOP = 5
#: similarities computed at once: some 300 MB with the selection of the largest
PRODUCTS = 2**24


def nearest(
    queries: Tensor, keys: Tensor, k: int, products: int = PRODUCTS
) -> tuple[Tensor, Tensor]:
    """The k keys with the highest inner product with each query, the highest first.

    Of equal products, the earlier key comes first.

    Args:
        queries: (queries, dim).
        keys: (keys, dim), at least k.
        k: number of keys to find.
        products: largest number that is computed at once, but at least that of one query.

    Returns:
        inner products and indices of the keys, both (queries, k).
    """
    found = []
    for some in queries.split(max(1, products // len(keys))):
        values = some @ keys.T
        least = values.topk(k).values[:, -1:]
        # topk does not define which of those it takes
        above, equal = values > least, values == least
        rest = k - above.sum(1, keepdim=True)
        chosen = above | (equal & (equal.cumsum(1) <= rest))
        indices = chosen.nonzero()[:, 1].view(-1, k)
        values, order = values.gather(1, indices).sort(descending=True, stable=True)
        found.append((values, indices.gather(1, order)))
    values, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return values, indices


def vote(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """The classes in the order of their votes, the sums of exp(similarity / temperature).

    Votes are relative to the nearest neighbour's, which does not change their order and cannot
    overflow at low temperatures.

    Args:
        similarity: cosine similarity of each neighbour, (images, k), the highest first.
        labels: class of each neighbour, (images, k).
        num_classes: number of classes.
        temperature: positive.

    Returns:
        class indices (images, 5 at most, and not more than k or classes), most votes first; for
        equal votes the lower index; then classes that no neighbour has.
    """
    similarity = similarity.double()
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(weights), num_classes).scatter_add_(1, labels, weights)
    # a vote may be so small that it rounds to 0, but it still counts
    voted = torch.zeros_like(votes, dtype=torch.bool).scatter_(1, labels, True)
    votes = votes.where(voted, -1)
    return votes.argsort(descending=True, stable=True)[:, : min(TOP, similarity.size(1))]


def extract(classifier: Classifier, loader: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Normalized features (images, dim) and classes (images,), on the CPU.

    Raises:
        UserError: if the features are not finite numbers, or there are no images.
    """
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for images, targets, _ in loader:
        if len(images) > 0:
            with torch.inference_mode():
                features.append(F.normalize(classifier.features(images)))
            labels.append(targets)
    if not features:
        raise UserError("--data: none of the images of one of its parts could be read.")
    return torch.cat(features), torch.cat(labels)


def classify(options: NeighbourOptions) -> None:
    """Classify the validation images, print the accuracies and write the report.

    Raises:
        UserError: for a model or data that cannot be used.
    """
    check_outputs([options.json])
    device = find_device(options.device)
    classifier = load_classifier(options, device, head="reset")
    data = classifier.data_or(options.data)
    transform = create_transform(classifier.data_config)
    training, validation = classifier.train_split, classifier.val_split
    train = create_dataset(data, training, transform, training=training, has_options=False)
    val = create_dataset(data, validation, transform, train.classes, training, has_options=False)
    counter = SkipCounter(options.on_error)
    loading = (options.batch_size, options.workers, device, counter)
    keys, labels = extract(classifier, batches(train, *loading))
    if max(options.nb_knn) > len(keys):
        raise UserError(
            f"-k {max(options.nb_knn)} is more than the {len(keys)} training images: "
            "give a smaller number."
        )
    queries, targets = extract(classifier, batches(val, *loading))
    keys, queries = keys.to(device), queries.to(device)
    similarity, neighbours = (part.cpu() for part in nearest(queries, keys, max(options.nb_knn)))

    scores = []
    for k in options.nb_knn:
        top = vote(
            similarity[:, :k], labels[neighbours[:, :k]], len(train.classes), options.temperature
        )
        top1 = 100 * float(accuracy_score(targets, top[:, 0]))
        top5 = 100 * float((top == targets[:, None]).any(1).double().mean())
        scores.append({"k": k, "top1": top1, "top5": top5 if len(train.classes) > TOP else None})
    report = {
        "model": classifier.name,
        "weights": classifier.weights,
        "data": data,
        "data_config": classifier.data_config,
        "temperature": options.temperature,
        "train_images": len(keys),
        "val_images": len(queries),
        "skipped": counter.skipped,
        "scores": scores,
        "machine": measured_on(device),
    }
    if options.json is not None:
        write_json(options.json, report)
    print(
        f"{classifier.name} ({classifier.weights}), {len(queries)} images of {' '.join(data)}, "
        f"{validation}, by {len(keys)} of {training}, temperature {options.temperature}"
    )
    for score in scores:
        top5_text = "" if score["top5"] is None else f", top-5 {score['top5']:.2f} %"
        print(f"k {score['k']}: top-1 {score['top1']:.2f} %{top5_text}")
    if counter.skipped:
        print(f"{len(counter.skipped)} images could not be read and were left out")
