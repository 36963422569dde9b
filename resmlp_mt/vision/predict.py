"""``python -m resmlp_mt.vision.predict``: labels with probabilities for image files.

    python -m resmlp_mt.vision.predict CHECKPOINT photo.jpg folder/ --topk 3
    python -m resmlp_mt.vision.predict CHECKPOINT folder/ --output labels.csv --on-error skip

There is one result for each file, in the order of the input. A folder stands for all image files in
it and below it, sorted by name. docs/vision_evaluation.md describes the formats.
"""

from resmlp_mt.vision.evaluation_options import PredictionOptions, command_main

main = command_main(
    PredictionOptions,
    "predict",
    "Labels with probabilities for image files and folders of them.",
    "prediction:predict",
)

if __name__ == "__main__":
    main()
