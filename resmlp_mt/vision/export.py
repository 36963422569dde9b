"""``python -m resmlp_mt.vision.export``: an image classifier as an ONNX graph.

    python -m resmlp_mt.vision.export CHECKPOINT --output model.onnx
    python -m resmlp_mt.vision.export --model resmlp_s12 --pretrained --output model.onnx

docs/vision_evaluation.md describes the graph.
"""

from resmlp_mt.vision.evaluation_options import ExportOptions, command_main

main = command_main(
    ExportOptions,
    "export",
    "Write an image classifier as an ONNX graph.",
    "onnx_export:export",
    ["onnx"],
)

if __name__ == "__main__":
    main()
