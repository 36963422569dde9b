"""``python -m resmlp_mt.vision.evaluate``: accuracy, confusion and throughput of a classifier.

    python -m resmlp_mt.vision.evaluate CHECKPOINT
    python -m resmlp_mt.vision.evaluate CHECKPOINT --data DIR --json report.json
    python -m resmlp_mt.vision.evaluate --model resmlp_s12 --weights resmlp_12.pth --data DIR

docs/vision_evaluation.md describes the report.
"""

from resmlp_mt.vision.evaluation_options import EvaluationOptions, command_main

main = command_main(
    EvaluationOptions,
    "evaluate",
    "Top-1 and top-5 accuracy, confusion and throughput of an image classifier.",
    "evaluation:evaluate",
    ["sklearn"],
)

if __name__ == "__main__":
    main()
