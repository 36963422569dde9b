"""The sizes and options of a model, named as the training options."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from resmlp_mt.graphs import is_recording
from resmlp_mt.layers import LEAST_GELU
from resmlp_mt.mixing import MixingConfig

FEW_NUMBERS = 2**12
"""Most numbers for which GELU as three elementary operations is faster than PyTorch's kernel.

On a CPU, that kernel is oneDNN's and needs 8 to 25 us to start.
"""


def _gelu(x: Tensor) -> Tensor:
    """x Phi(x) = x/2 + x/2 erf(x / sqrt 2)."""
    if (
        is_recording()
        or torch.is_grad_enabled()
        or x.device.type != "cpu"
        or x.numel() > FEW_NUMBERS
    ):
        return F.gelu(x)
    half = 0.5 * x
    return torch.addcmul(half, half, torch.erf(x * 0.5**0.5))


def _gelu_accurate(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _linear(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": _gelu,
    "gelu_accurate": _gelu_accurate,
    "tanh": torch.tanh,
    "linear": _linear,
}
"""The choices of fairseq's ``--activation-fn``; its ``gelu_fast`` is ``gelu_accurate``."""

LEAST_VALUES = {"relu": 0.0, "gelu": LEAST_GELU, "gelu_accurate": -0.1701}
"""A bound that the values of these activations never fall below."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a model."""

    source_vocabulary: int
    target_vocabulary: int
    encoder_embed_dim: int
    encoder_ffn_embed_dim: int
    encoder_layers: int
    decoder_embed_dim: int
    decoder_ffn_embed_dim: int
    decoder_layers: int
    decoder_attention_heads: int
    max_source_positions: int
    max_target_positions: int
    activation_fn: str = "gelu"
    share_all_embeddings: bool = False
    share_decoder_input_output_embed: bool = False
    layer_scale_init: float = 0.2
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    checkpoint_activations: bool = False
    offload_activations: bool = False
    padding_idx: int = 1
    longest_trained_source: int = 0
    """Tokens of the longest source sentence of the training, with end-of-sentence; 0: unknown."""
    encoder_mixing: MixingConfig = field(default_factory=MixingConfig)
    decoder_mixing: MixingConfig = field(default_factory=MixingConfig)
