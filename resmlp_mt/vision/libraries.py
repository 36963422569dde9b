"""Imports timm and torchvision, even if torchvision does not fit PyTorch's build.

Import both from here. PyPI's torchvision is built for CUDA. With a PyTorch without CUDA its
compiled operators do not load, and its import (and so timm's) fails at the missing schema of nms.
Here the operators are declared without an implementation. They would fail if called, but nothing
calls them.
"""

import torch

from resmlp_mt.extras import missing

try:
    if torch.version.cuda is None:
        try:
            import torchvision
        except RuntimeError:  # operator torchvision::nms does not exist
            _OPERATORS = torch.library.Library("torchvision", "DEF")
            for _name in ("nms", "qnms"):
                _OPERATORS.define(
                    _name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
    import timm
    import timm.data
    import timm.loss
    import timm.models
    import timm.optim
    import timm.scheduler
    import timm.utils
    import torchvision
    import torchvision.transforms.functional
    import torchvision.transforms.v2
except ModuleNotFoundError as error:
    raise missing(error) from error

__all__ = ["timm", "torchvision"]
