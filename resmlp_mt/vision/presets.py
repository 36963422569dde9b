"""Our models by name; command lines know them before PyTorch and timm are loaded."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """The sizes of a named model."""

    embed_dim: int
    depth: int
    patch_size: int
    layer_scale_init: float
    img_size: int = 224


# Sizes: table 1 of the paper. LayerScale: the authors' code.
MODELS = {
    "resmlp_s12": Preset(384, 12, 16, 0.1),
    "resmlp_s24": Preset(384, 24, 16, 1e-5),
    "resmlp_s36": Preset(384, 36, 16, 1e-6),
    "resmlp_b24": Preset(768, 24, 16, 1e-6),
    "resmlp_tiny": Preset(64, 4, 4, 0.1, img_size=32),
}
#: timm's names for our models, with different arguments
TIMM_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "resmlp_12_224": ("resmlp_s12", {}),
    "resmlp_24_224": ("resmlp_s24", {}),
    "resmlp_36_224": ("resmlp_s36", {}),
    "resmlp_big_24_224": ("resmlp_b24", {"patch_size": 8}),
}
#: names for models whose weights timm's hub has, ours and timm's, with timm's
HUB_NAMES = {own: name for name, (own, different) in TIMM_NAMES.items() if not different}
HUB_NAMES |= {name: name for name in TIMM_NAMES}


def untagged(name: str) -> str:
    """A model's name without the tag of its weights: resmlp_12_224.fb_in1k is resmlp_12_224."""
    return name.partition(".")[0]


def is_ours(name: str) -> bool:
    """Whether a name means a ResMLP; timm's names and tags of weights are allowed."""
    return untagged(name) in MODELS or untagged(name) in TIMM_NAMES
