"""What encoder and decoder have in common: a stack of layers between two affine maps."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from resmlp_mt.graphs import is_recording
from resmlp_mt.layers import Affine
from resmlp_mt.mixing import TokenMixing
from resmlp_mt.model.config import ModelConfig
from resmlp_mt.padding import Layout


def refuse_torchscript(_: nn.Module) -> NoReturn:
    """Called first by ``torch.jit.script``.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "TorchScript is not supported for translation models: use torch.compile, torch.export, "
        "torch.jit.trace or python -m resmlp_mt.export."
    )


class Stack(nn.Module):
    """Embedding, layers, final affine map; no positional embedding.

    Args:
        config: sizes and options.
        embed_tokens: the embedding, (vocabulary, dim).
        layers: each with its ``token_mixing``.
        others: arguments of a second base class, which fairseq's adapters have.
    """

    __prepare_scriptable__ = refuse_torchscript

    def __init__(
        self,
        config: ModelConfig,
        embed_tokens: nn.Embedding,
        layers: Sequence[nn.Module],
        *others: Any,
    ) -> None:
        super().__init__(*others)
        dim = embed_tokens.embedding_dim
        self.config = config
        self.embed_tokens = embed_tokens
        self.embed_scale = math.sqrt(dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(layers)
        self.final_affine: Affine | None = Affine(dim)
        self.longest = longest(self.layers)

    def embed(self, tokens: Tensor) -> Tensor:
        """Scaled embeddings of tokens: (...,) -> (..., dim)."""
        return scaled(self.embed_tokens(tokens), self.embed_scale)


def longest(layers: nn.ModuleList) -> int:
    """The largest number of tokens, with end-of-sentence, that the mixings of all layers take."""
    return min(cast(TokenMixing, layer.token_mixing).longest for layer in layers)


def scaled(embedded: Tensor, scale: float) -> Tensor:
    """Embeddings times their scale, which is 1 in a folded model."""
    return embedded if scale == 1.0 else embedded * scale


def check_length(side: str, length: int, longest: int) -> None:
    """Refuse sentences that are too long.

    Raises:
        ValueError: if ``length`` exceeds ``longest``.
    """
    if length > longest:
        raise ValueError(
            f"a {side} sentence has {length} tokens, but this model was trained for at most "
            f"{longest}: shorten it, or train with a larger --max-{side}-positions."
        )


def kept_layers(
    layers: nn.ModuleList, layerdrop: float
) -> list[tuple[int, nn.Module, Tensor | None]]:
    """The layers that a forward pass uses, with their numbers; for :func:`unless_dropped`.

    In training, LayerDrop (Fan et al. 2019, arXiv:1909.11556) leaves out each layer with
    probability ``layerdrop``. It is drawn as fairseq's ``LayerDropModuleList`` draws it. A recorded
    graph has all layers, and draws which to use.
    """
    if not layers.training or layerdrop == 0.0:
        return [(index, layer, None) for index, layer in enumerate(layers)]
    keeps = torch.rand(len(layers)) > layerdrop
    if is_recording():
        return list(zip(range(len(layers)), layers, keeps.unbind(), strict=True))
    numbered = zip(enumerate(layers), keeps.tolist(), strict=True)
    return [(index, layer, None) for (index, layer), keep in numbered if keep]


def unless_dropped(keep: Tensor | None, after: Tensor, before: Tensor) -> Tensor:
    """The states after a layer; those before it if ``keep`` is False."""
    return after if keep is None else torch.where(keep.to(after.device), after, before)


def run_layer(layer: nn.Module, config: ModelConfig, *arguments: object) -> Any:
    """The layer's output; with ``--checkpoint-activations`` the backward pass computes it again.

    With ``--offload-activations``, the layer's inputs are kept in the CPU's memory until then.
    """
    if config.offload_activations and torch.is_grad_enabled():
        device = next(layer.parameters()).device
        moved = partial(tree_map_only, Tensor, is_leaf=lambda part: isinstance(part, Layout))
        waiting = moved(Tensor.cpu, arguments)

        def layer_there(_: Tensor, *arguments: object) -> Any:
            return layer(*moved(lambda x: x.to(device), arguments))

        # PyTorch only keeps the random state of its arguments' devices, for the same dropout again.
        there = torch.empty(0, device=device)
        return checkpoint(layer_there, there, *waiting, use_reentrant=False)
    if config.checkpoint_activations and torch.is_grad_enabled():
        return checkpoint(layer, *arguments, use_reentrant=False)
    return layer(*arguments)
