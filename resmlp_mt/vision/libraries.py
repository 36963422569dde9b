"""timm and torchvision, also where they do not fit to PyTorch's build: ``import`` them from here.

PyPI's torchvision is built for CUDA. Beside a PyTorch without CUDA its compiled operators do not
load, and its import (and so timm's) stops at the missing schema of nms. The operators are declared
here without an implementation: they fail only where they are called, and nothing here calls them.
"""

import torch

from resmlp_mt.errors import UserError

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
    import torchvision.datasets.folder
    import torchvision.transforms.functional
except ModuleNotFoundError as error:
    raise UserError(
        f"{error.name} is missing: pip install 'resmlp_mt[vision]' for the image models."
    ) from error

__all__ = ["timm", "torchvision"]
