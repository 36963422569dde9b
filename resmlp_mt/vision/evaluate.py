"""``python -m resmlp_mt.vision.evaluate``: accuracy, confusion and throughput of a classifier.

    python -m resmlp_mt.vision.evaluate CHECKPOINT
    python -m resmlp_mt.vision.evaluate CHECKPOINT --data DIR --json report.json
    python -m resmlp_mt.vision.evaluate --model resmlp_s12 --weights resmlp_12.pth --data DIR

docs/vision_evaluation.md describes the report.
"""

from collections.abc import Sequence

from resmlp_mt.command_line import command
from resmlp_mt.vision.evaluation_options import EvaluationOptions, parse


@command
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(
        EvaluationOptions,
        argv,
        "evaluate",
        "Top-1 and top-5 accuracy, confusion and throughput of an image classifier.",
        ["sklearn"],
    )
    from resmlp_mt.vision.evaluation import evaluate  # with PyTorch

    evaluate(options)


if __name__ == "__main__":
    main()
