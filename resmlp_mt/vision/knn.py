"""``python -m resmlp_mt.vision.knn``: weighted nearest neighbours on frozen features.

python -m resmlp_mt.vision.knn CHECKPOINT --data DIR -k 10 20
"""

from resmlp_mt.vision.evaluation_options import NeighbourOptions, command_main

main = command_main(
    NeighbourOptions,
    "knn",
    "Weighted k-nearest-neighbour classification on frozen features, as in DINO.",
    "neighbours:classify",
    ["sklearn"],
)

if __name__ == "__main__":
    main()
