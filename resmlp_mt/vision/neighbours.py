"""Weighted nearest neighbours on frozen features.

This is the evaluation of DINO (Caron et al. 2021, arXiv:2104.14294, section 4 and appendix F.1) and
of Wu et al. 2018 (arXiv:1805.01978). The k training images whose features have the highest cosine
similarity s to those of a validation image vote for their classes, each with the weight
exp(s / temperature). scikit-learn finds them, once for the largest k.

Both sets go through the evaluation transform. If two classes have equal votes, the earlier one
comes first; classes without votes come last. Which of several equally similar images is among the
k nearest is scikit-learn's choice, and may depend on the largest k. The top 5 are DINO's: the first
5 classes in this order, with k below 5 only the first k.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score
from sklearn.neighbors import NearestNeighbors

from resmlp_mt.errors import UserError
from resmlp_mt.files import check_outputs, check_standard_output, write_json
from resmlp_mt.vision.classifier import load_classifier
from resmlp_mt.vision.data import create_dataset
from resmlp_mt.vision.distributed import find_device, measured_on
from resmlp_mt.vision.evaluation import TOP, run
from resmlp_mt.vision.evaluation_options import NeighbourOptions
from resmlp_mt.vision.images import SkipCounter
from resmlp_mt.vision.loader import batches
from resmlp_mt.vision.transforms import create_transform

Features = NDArray[np.float32]
Classes = NDArray[np.int64]


def ranked(
    queries: Features, keys: Features, labels: Classes, ks: Sequence[int], temperature: float
) -> Iterator[Classes]:
    """The classes in the order of their votes, for each number of neighbours.

    Args:
        queries: features of the images to classify, (images, dim).
        keys, labels: features (training images, dim) and classes of the training images.
        ks: numbers of neighbours that vote, at most all training images.

    Yields:
        for each k, classes (images, 5 at most, and not more than k or different labels), most votes
        first.
    """
    search = NearestNeighbors(n_neighbors=max(ks), metric="cosine", algorithm="brute").fit(keys)
    distances, neighbours = search.kneighbors(queries)  # the nearest first
    # relative to the nearest neighbour, so that low temperatures do not make all votes 0
    weights = np.exp((distances[:, :1] - distances) / temperature)
    present, voted = np.unique(labels, return_inverse=True)
    rows = np.arange(len(queries))[:, None]
    for k in ks:
        votes = np.zeros((len(queries), len(present)))
        np.add.at(votes, (rows, voted[neighbours[:, :k]]), weights[:, :k])
        order = np.argsort(-votes, axis=1, kind="stable")[:, : min(TOP, k)]
        found: Classes = present[order]
        yield found


def classify(options: NeighbourOptions) -> None:
    """Classify the validation images, print the accuracies and write the report.

    Raises:
        UserError: for a model or data that cannot be used.
    """
    check_standard_output(options.json, "--json")
    check_outputs(("--json", options.json))
    device = find_device(options.device)
    classifier = load_classifier(options, device, head="reset")
    data = classifier.data
    transform = create_transform(classifier.data_config)
    training = options.train_split or classifier.train_split
    validation = options.val_split or classifier.val_split
    train = create_dataset(data, training, transform, training=training)
    val = create_dataset(data, validation, transform, train.classes, training)
    counter = SkipCounter(options.on_error)
    loading = (options.batch_size, options.workers, device, counter)
    known = run(classifier.features, batches(train, *loading), data, training)
    keys, labels = known.values, known.targets
    if max(options.nb_knn) > len(keys):
        raise UserError(
            f"-k {max(options.nb_knn)} is more than the {len(keys)} training images: "
            "give a smaller number."
        )
    asked = run(classifier.features, batches(val, *loading), data, validation)
    queries, targets = asked.values, asked.targets
    scores = []
    found = ranked(queries, keys, labels, options.nb_knn, options.temperature)
    for k, top in zip(options.nb_knn, found, strict=True):
        top1 = 100 * float(accuracy_score(targets, top[:, 0]))
        top5 = 100 * float((top == targets[:, None]).any(1).mean())
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
