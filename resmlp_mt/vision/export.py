"""``python -m resmlp_mt.vision.export``: an image classifier as an ONNX graph.

    python -m resmlp_mt.vision.export CHECKPOINT --output model.onnx
    python -m resmlp_mt.vision.export --model resmlp_s12 --pretrained --output model.onnx

docs/vision_evaluation.md describes the graph.
"""

from collections.abc import Sequence

from resmlp_mt.command_line import command
from resmlp_mt.vision.evaluation_options import ExportOptions, parse


@command
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(
        ExportOptions,
        argv,
        "export",
        "Write an image classifier as an ONNX graph.",
        ["onnx"],
    )
    from resmlp_mt.vision.onnx_export import export  # with PyTorch

    export(options)


if __name__ == "__main__":
    main()
