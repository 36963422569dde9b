"""The encoder: token mixing and feed-forward, each between two affine maps."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from resmlp_mt.layers import Affine, FeedForward
from resmlp_mt.mixing import create_mixing
from resmlp_mt.model.config import ACTIVATIONS, ModelConfig
from resmlp_mt.model.residual import feed_forward_branch, mixing_branch
from resmlp_mt.model.stack import Stack, check_length, kept_layers, run_layer, unless_dropped
from resmlp_mt.padding import Layout


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


class Encoder(Stack):
    """A stack of ``encoder_layers`` layers."""

    def __init__(self, config: ModelConfig, embed_tokens: nn.Embedding, *others: Any) -> None:
        layers = [EncoderLayer(config) for _ in range(config.encoder_layers)]
        super().__init__(config, embed_tokens, layers, *others)

    @property
    def longest_trained_source(self) -> int:
        """Tokens of the longest sentence of the training, from the configuration; 0 if unknown."""
        return self.config.longest_trained_source

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
