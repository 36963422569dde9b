"""Reads folders that version 0.1.0 exported: the same numbers under other names.

There an encoder layer was x + A (s x + h) + c and a decoder layer x + A (s x) + c. Now s and h are
an :class:`Affine` before A. ``own_scale`` had a copy of the decoder's diagonal of A, times s and
including the residual, and is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

INPUT = "ancestors"
"""Of ``decoder_step.onnx``, before it took the past of each layer as an input of its own."""
PARTS = {
    "mixing": "token_mixing.weight",
    "constant": "token_mixing.constant",
    "scale": "mixing_pre.alpha",
    "shift": "mixing_pre.beta",
    "q_proj": "encoder_attn.q_proj",
    "out_proj": "encoder_attn.out_proj",
    "fc1": "ffn.fc1",
    "fc2": "ffn.fc2",
}


def is_earlier(config: Mapping[str, Any]) -> bool:
    """Whether 0.1.0 wrote this ``config.json``, which had no variants of the mixing."""
    return "encoder_layers" in config and "encoder_mixing" not in config


def renamed(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a folder of 0.1.0 under their present names and in their present shapes.

    Names that 0.1.0 did not have stay as they are.

    Args:
        stored: the parameters in the file, float or int8.
    """
    found = {}
    for name, value in stored.items():
        layer = re.fullmatch(r"(encoder|decoder)_layers\.(\d+)\.(\w+)(\.\w+)?", name)
        if name == "decoder_mixing":  # for all layers
            for number, matrix in enumerate(value):
                found[f"decoder.layers.{number}.token_mixing.weight"] = matrix.unsqueeze(0)
        elif layer and layer[3] != "own_scale":
            side, index, part, rest = layer.groups("")
            if part == "mixing":
                value = value.unsqueeze(0)
            elif part == "constant" and side == "decoder":
                value = value.unsqueeze(1)
            elif part == "scale" and side == "decoder":
                found[f"decoder.layers.{index}.mixing_pre.beta"] = value.new_zeros(value.shape)
            found[f"{side}.layers.{index}.{PARTS.get(part, part)}{rest}"] = value
        elif not layer:
            name = re.sub(r"^(kv_proj|output_projection)", r"decoder.\1", name)
            name = re.sub(r"^(source|target)_embedding", _embedding, name)
            found[name] = value
    return found


def _embedding(match: re.Match[str]) -> str:
    return ("encoder" if match[1] == "source" else "decoder") + ".embed_tokens"
