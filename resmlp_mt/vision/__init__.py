"""ResMLP on images: models, weights, training, evaluation.

``create_model`` and ``load_weights`` are imported on first use, so that the commands in this
package can print their options without PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resmlp_mt.vision.factory import create_model
    from resmlp_mt.vision.weights import load_weights

__all__ = ["create_model", "load_weights"]
_MODULES = {"create_model": "factory", "load_weights": "weights"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"resmlp_mt.vision.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
