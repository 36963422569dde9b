"""``python -m resmlp_mt.vision.predict``: labels with probabilities for image files.

    python -m resmlp_mt.vision.predict CHECKPOINT photo.jpg folder/ --topk 3
    python -m resmlp_mt.vision.predict CHECKPOINT folder/ --output labels.csv --on-error skip

There is one result for each file, in the order of the input. A folder stands for all image files in
it and below it, sorted by name. docs/vision_evaluation.md describes the formats.
"""

from collections.abc import Sequence

from resmlp_mt.command_line import command
from resmlp_mt.vision.evaluation_options import PredictionOptions, parse


@command
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(
        PredictionOptions,
        argv,
        "predict",
        "Labels with probabilities for image files and folders of them.",
    )
    from resmlp_mt.vision.prediction import predict  # with PyTorch

    predict(options)


if __name__ == "__main__":
    main()
