"""``python -m resmlp_mt.vision.export``: an image classifier as an ONNX graph.

    python -m resmlp_mt.vision.export CHECKPOINT --output model.onnx
    python -m resmlp_mt.vision.export --model resmlp_s12 --pretrained --output model.onnx

docs/vision_evaluation.md describes the graph.
"""

from collections.abc import Sequence

from resmlp_mt.command_line import command
from resmlp_mt.vision.evaluation_options import ExportOptions, parse
from resmlp_mt.vision.options import Parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        "export", ExportOptions, "Write an image classifier as an ONNX graph.", needs=["onnx"]
    )
    options = parse(parser, ExportOptions, argv)
    from resmlp_mt.vision.onnx_export import export  # with PyTorch

    export(options)


if __name__ == "__main__":
    main()
