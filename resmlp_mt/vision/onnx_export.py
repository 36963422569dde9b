"""Exports an image classifier as an ONNX graph.

The input is ``images``, float32 (batch, channels, height, width), normalised; the output is
``logits``, float32 (batch, classes). The batch size is free. The graph's metadata has, as JSON,
``classes`` (names, or null) and ``data_config`` (input_size, mean, std, interpolation, crop_pct,
crop_mode).
"""

import json
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from resmlp_mt.errors import UserError, is_of_memory, reason
from resmlp_mt.files import check_outputs, output_file
from resmlp_mt.onnx_exporter import check_exporter, graph_of
from resmlp_mt.vision.classifier import Classifier, load_classifier
from resmlp_mt.vision.evaluation_options import ExportOptions
from resmlp_mt.vision.folding import can_be_folded, folded

OTHERS = (".pt", ".pth", ".safetensors", ".bin", ".txt", ".json")
"""Endings of files that are not graphs."""


def export(options: ExportOptions) -> None:
    """Write the graph of a classifier.

    Raises:
        UserError: for a model or an output that cannot be used.
    """
    if options.output.suffix.lower() in OTHERS:
        raise UserError(f"--output {options.output}: the file is an ONNX graph, so name it .onnx.")
    check_outputs([options.output])
    classifier = load_classifier(options, torch.device("cpu"))
    with output_file(options.output) as partial:
        graph(classifier).save(partial)
    print(f"wrote {options.output}: images {tuple(classifier.data_config['input_size'])} to logits")


def graph(classifier: Classifier) -> Any:
    """The classifier as an ``onnx_ir`` program; affine maps are folded if possible.

    Raises:
        UserError: if the exporter is not installed, or cannot convert the model.
    """
    check_exporter()
    model: nn.Module = classifier.model
    if can_be_folded(model):
        model = folded(model, pack=False)
    # two images, because the exporter would take a batch of one for a constant
    images = torch.zeros(2, *classifier.data_config["input_size"])
    metadata = {
        "classes": json.dumps(classifier.classes),
        "data_config": json.dumps(classifier.data_config),
    }
    try:
        return graph_of(
            model,
            metadata,
            args=(images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: Dim("batch", min=1)},),
        )
    except Exception as error:  # the exporter has many exception types of its own
        if is_of_memory(error):
            raise
        raise UserError(f"{classifier.name} cannot be exported: {reason(error)}") from error
