"""The encoder: token mixing and feed-forward, each between two affine maps."""

import math
from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resmlp_mt.graphs import is_recording
from resmlp_mt.layers import Affine, FeedForward
from resmlp_mt.mixing import create_mixing
from resmlp_mt.model.config import ACTIVATIONS, ModelConfig
from resmlp_mt.model.residual import feed_forward_branch, mixing_branch
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


class EncoderLayer(nn.Module):
    """Z = X + Aff(A Aff(X)), Y = Z + Aff(FeedForward(Aff(Z)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.encoder_embed_dim
        self.dropout = nn.Dropout(config.dropout)
        self.mixing_pre: Affine | None = Affine(dim)
        self.token_mixing = create_mixing(config.encoder_mixing, dim, config.max_source_positions)
        self.mixing_post: Affine | None = Affine(dim, config.layer_scale_init)
        self.ffn_pre: Affine | None = Affine(dim)
        self.ffn = FeedForward(
            dim,
            config.encoder_ffn_embed_dim,
            ACTIVATIONS[config.activation_fn],
            config.activation_dropout,
        )
        self.ffn_post: Affine | None = Affine(dim, config.layer_scale_init)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Transform hidden states of the tokens of a batch, (tokens, dim)."""
        x = mixing_branch(
            x, layout, self.mixing_pre, self.token_mixing, self.mixing_post, self.dropout
        )
        return feed_forward_branch(x, self.ffn_pre, self.ffn, self.ffn_post, self.dropout)


class Encoder(nn.Module):
    """Embedding, ``encoder_layers`` layers, final affine map; no positional embedding.

    Args:
        config: sizes and options.
        embed_tokens: the embedding, (source_vocabulary, dim).
        others: arguments of a second base class, which fairseq's adapter has.
    """

    __prepare_scriptable__ = refuse_torchscript

    def __init__(self, config: ModelConfig, embed_tokens: nn.Embedding, *others: Any) -> None:
        super().__init__(*others)
        self.config = config
        self.embed_tokens = embed_tokens
        self.embed_scale = math.sqrt(config.encoder_embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(config.encoder_layers)])
        self.final_affine: Affine | None = Affine(config.encoder_embed_dim)
        self.longest = longest(self.layers)

    @property
    def longest_trained_source(self) -> int:
        """Tokens of the longest sentence of the training, from the configuration; 0 if unknown."""
        return self.config.longest_trained_source

    def embed(self, tokens: Tensor) -> Tensor:
        """Scaled embeddings of tokens: (...,) -> (..., dim)."""
        return scaled(self.embed_tokens(tokens), self.embed_scale)

    def encode(
        self,
        tokens: Tensor,
        layout: Layout,
        visit: Callable[[Tensor], object] | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """Transform a batch of sentences.

        Args:
            tokens: (batch, length), padded at the end.
            layout: where they stand.
            visit: called with the states before the first layer and after every layer.
            embedded: (tokens, dim), instead of the tokens' scaled embeddings.

        Returns:
            States of the tokens, (tokens, dim).

        Raises:
            ValueError: if a sentence is longer than the model allows.
        """
        check_length("source", tokens.size(1), self.longest)
        x: Tensor = self.embed(layout.pack(tokens.t())) if embedded is None else embedded
        x = self.dropout(x)
        if visit is not None:
            visit(x)
        for _, layer, keep in kept_layers(self.layers, self.config.encoder_layerdrop):
            x = unless_dropped(keep, run_layer(layer, self.config, x, layout), x)
            if visit is not None:
                visit(x)
        if self.final_affine is not None:
            x = self.final_affine(x)
        return x


def longest(layers: nn.ModuleList) -> int:
    """The largest number of tokens, with end-of-sentence, that the mixings of all layers take."""
    return min(cast(EncoderLayer, layer).token_mixing.longest for layer in layers)


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
        waiting = [a.cpu() if isinstance(a, Tensor) else a for a in arguments]

        def layer_there(_: Tensor, *moved: object) -> Any:
            return layer(*(a.to(device) if isinstance(a, Tensor) else a for a in moved))

        # PyTorch only keeps the random state of its arguments' devices, for the same dropout again.
        there = torch.empty(0, device=device)
        return checkpoint(layer_there, there, *waiting, use_reentrant=False)
    if config.checkpoint_activations and torch.is_grad_enabled():
        return checkpoint(layer, *arguments, use_reentrant=False)
    return layer(*arguments)
