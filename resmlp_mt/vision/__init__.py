"""ResMLP on images: models, weights, training, evaluation."""

import torch

# PyPI's torchvision is built for CUDA. Beside a PyTorch without CUDA its compiled operators do not
# load, and its import (so timm's) stops at the missing schema of nms. Declared without an
# implementation, the operators fail only where they are called; nothing here calls them.
if torch.version.cuda is None:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # operator torchvision::nms does not exist
        _OPERATORS = torch.library.Library("torchvision", "DEF")
        for _name in ("nms", "qnms"):
            _OPERATORS.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from resmlp_mt.vision.model import create_model
from resmlp_mt.vision.weights import load_weights

__all__ = ["create_model", "load_weights"]
