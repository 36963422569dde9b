"""``python -m resmlp_mt.vision.knn``: weighted nearest neighbours on frozen features.

python -m resmlp_mt.vision.knn CHECKPOINT --data DIR -k 10 20
"""

from collections.abc import Sequence

from resmlp_mt.command_line import command
from resmlp_mt.vision.evaluation_options import NeighbourOptions, parse


@command
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(
        NeighbourOptions,
        argv,
        "knn",
        "Weighted k-nearest-neighbour classification on frozen features, as in DINO.",
        ["sklearn"],
    )
    from resmlp_mt.vision.neighbours import classify  # with PyTorch

    classify(options)


if __name__ == "__main__":
    main()
