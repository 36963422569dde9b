"""ResMLP on images: models, weights, training, evaluation.

``create_model`` and ``load_weights`` are imported on first use, so that the commands in this
package can print their options without PyTorch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resmlp_mt.vision.factory import create_model
    from resmlp_mt.vision.weights import load_weights

__all__ = ["create_model", "load_weights"]


def __getattr__(name: str) -> Any:
    if name == "create_model":
        from resmlp_mt.vision.factory import create_model

        return create_model
    if name == "load_weights":
        from resmlp_mt.vision.weights import load_weights

        return load_weights
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
