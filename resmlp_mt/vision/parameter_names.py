"""The names of a ResMLP's parameters: ours, timm's and the authors'."""

from collections.abc import Mapping

from torch import Tensor

# our name, timm's (MlpMixer with ResBlock), the authors' (resmlp_models.py)
NAMES = (
    ("patch_embed.proj.", "stem.proj.", "patch_embed.proj."),
    (".mixing_pre.", ".norm1.", ".norm1."),
    (".token_mixing.", ".linear_tokens.", ".attn."),
    (".mixing_post.alpha", ".ls1", ".gamma_1"),
    (".ffn_pre.", ".norm2.", ".norm2."),
    (".ffn.", ".mlp_channels.", ".mlp."),
    (".ffn_post.alpha", ".ls2", ".gamma_2"),
)


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of timm or of the authors under our names; ours is returned unchanged.

    The kernel of the patch embedding and timm's affine maps, (1, 1, dim), are flattened.
    """
    foreign = 1 if "stem.proj.weight" in state else 2
    converted = {}
    for key, value in state.items():
        key = renamed(key, foreign, 0)
        if key == "patch_embed.proj.weight" and value.dim() == 4:
            value = value.flatten(1)
        elif key.endswith((".alpha", ".beta")):
            value = value.flatten()
        converted[key] = value
    return converted


def renamed(key: str, old: int, new: int) -> str:
    """A parameter's name in another column of :data:`NAMES`."""
    for names in NAMES:
        if key.startswith(names[old]) or (names[old].startswith(".") and names[old] in key):
            return key.replace(names[old], names[new])
    return key
