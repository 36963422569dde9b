"""Exports an image classifier as an ONNX graph.

The input is ``images``, float32 (batch, channels, height, width), normalised; the output is
``logits``, float32 (batch, classes). The batch size is free. The graph's metadata has, as JSON,
``classes`` (names, or null) and ``data_config`` (input_size, mean, std, interpolation, crop_pct,
crop_mode). Large weights lie in a file beside the graph, named after it.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.files import check_outputs, output_file, partial_prefix, synchronize, writing
from resmlp_mt.onnx_exporter import LARGEST, check_exporter, graph_of, weight_bytes
from resmlp_mt.vision.classifier import Classifier, load_classifier
from resmlp_mt.vision.evaluation_options import ExportOptions
from resmlp_mt.vision.folding import can_be_folded, folded

OTHERS = (".pt", ".pth", ".safetensors", ".bin", ".txt", ".json")
"""Endings of files that are not graphs."""


def export(options: ExportOptions) -> None:
    """Write the graph of a classifier, and say where it is.

    Raises:
        UserError: for a model or an output that cannot be used.
    """
    if options.output.suffix.lower() in OTHERS:
        raise UserError(f"--output {options.output}: the file is an ONNX graph, so name it .onnx.")
    check_outputs(("--output", options.output))
    classifier = load_classifier(options, torch.device("cpu"))
    program = graph(classifier)
    files = str(options.output)
    if weight_bytes(program) > LARGEST:
        files += f" and {_save_in_two(program, options.output)}"
    else:
        with output_file(options.output) as partial:
            program.save(partial)
    print(f"wrote {files}: images {tuple(classifier.data_config['input_size'])} to logits")


def _save_in_two(program: Any, path: Path) -> Path:
    """Write a graph, and its weights into a file beside it, which is returned.

    Both appear complete or not at all, and never one of them with an earlier other one.
    """
    if path.exists() and not path.is_file():
        raise UserError(
            f"--output {path}: the weights, {weight_bytes(program) / 1e9:.1f} GB, need a file "
            "beside the graph: give the name of a file."
        )
    data = path.with_name(f"{path.name}.data")  # as PyTorch names it
    check_outputs(("--output", data))
    with (
        writing(path, "--output"),
        tempfile.TemporaryDirectory(prefix=partial_prefix(path), dir=path.parent) as folder,
    ):
        written = [Path(folder, file.name) for file in (data, path)]
        program.save(written[1], external_data=True)
        for file in written:
            synchronize(file)
        path.unlink(missing_ok=True)
        for file, place in zip(written, (data, path), strict=True):
            os.replace(file, place)
        synchronize(path.parent)
    return data


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
    # the exporter has many exception types of its own
    with refused(lambda error: f"{classifier.name} cannot be exported: {reason(error)}", Exception):
        return graph_of(
            model,
            metadata,
            args=(images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: Dim("batch", min=1)},),
        )
