"""The decoder: causal token mixing, cross-attention and feed-forward, each between affine maps."""

import math
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn

from resmlp_mt.layers import Affine, FeedForward, TokenMixing
from resmlp_mt.translation.attention import CrossAttention
from resmlp_mt.translation.config import ResMLPConfig, activation
from resmlp_mt.translation.incremental import IncrementalState, WithIncrementalState
from resmlp_mt.translation.padding import left_aligned, on_tokens, realigned, token_rows


class CausalMixing(WithIncrementalState, TokenMixing):
    """Lower-triangular token mixing that can go on from a cache of its earlier inputs."""

    def step(self, x: Tensor, incremental_state: IncrementalState) -> Tensor:
        """Mix the newest position into those seen before: (1, batch, dim) -> (1, batch, dim)."""
        state = self.get_incremental_state(incremental_state, "history") or {}
        history = state.get("inputs")
        history = x if history is None else torch.cat([history, x])
        self.set_incremental_state(incremental_state, "history", {"inputs": history})
        return self.last(history)

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> None:
        """Follow a new order of hypotheses; (batch,) indices."""
        state = self.get_incremental_state(incremental_state, "history")
        if state is None:
            return
        inputs = state["inputs"]
        # Of greedy search; a GPU would have to be waited for to know.
        if inputs.is_cpu and torch.equal(new_order, torch.arange(inputs.size(1))):
            return
        inputs = inputs.index_select(1, new_order)
        self.set_incremental_state(incremental_state, "history", {"inputs": inputs})


class DecoderLayer(nn.Module):
    """X + Aff(A Aff(X)) with A lower triangular, then cross-attention and feed-forward likewise."""

    def __init__(self, cfg: ResMLPConfig) -> None:
        super().__init__()
        dim = cfg.decoder_embed_dim
        self.dropout = nn.Dropout(cfg.dropout)
        self.mixing_pre = Affine(dim)
        self.token_mixing = CausalMixing(cfg.max_target_positions, causal=True)
        self.mixing_post = Affine(dim, cfg.layer_scale_init)
        self.encoder_attn_pre = Affine(dim)
        self.encoder_attn = CrossAttention(
            dim, cfg.encoder_embed_dim, cfg.decoder_attention_heads, cfg.attention_dropout
        )
        self.encoder_attn_post = Affine(dim, cfg.layer_scale_init)
        self.ffn_pre = Affine(dim)
        self.ffn = FeedForward(
            dim,
            cfg.decoder_ffn_embed_dim,
            activation(cfg),
            cfg.activation_dropout,
        )
        self.ffn_post = Affine(dim, cfg.layer_scale_init)

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor,
        encoder_padding_mask: Tensor | None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = False,
        rows: Tensor | None = None,
        source_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Transform hidden states.

        Args:
            x: (length, batch, dim); with ``incremental_state`` the newest position alone,
                (1, batch, dim).
            encoder_out: (source length, batch, dim).
            encoder_padding_mask: (batch, source length), True at pads.
            incremental_state: fairseq's cache of the positions seen so far.
            need_weights: also return the attention weights.
            rows: of the target tokens among length * batch; None: all are computed.
            source_rows: the same of the source.

        Returns:
            Hidden states, shaped like ``x``, and weights (heads, batch, length, source length).
        """
        y = self.mixing_pre(x)
        if incremental_state is None:
            y = self.token_mixing(y)
        else:
            y = self.token_mixing.step(y, incremental_state)
        x = x + self.dropout(self.mixing_post(y))

        y, weights = self.encoder_attn(
            self.encoder_attn_pre(x),
            encoder_out,
            encoder_padding_mask,
            incremental_state,
            need_weights,
            rows,
            source_rows,
        )
        x = x + self.dropout(self.encoder_attn_post(y))
        return x + on_tokens(self._feed_forward, x, rows), weights

    def _feed_forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.ffn_post(self.ffn(self.ffn_pre(x))))
        return y


class ResMLPDecoder(FairseqIncrementalDecoder):
    """Embedding, ``decoder_layers`` layers, final affine map, output projection."""

    def __init__(
        self, cfg: ResMLPConfig, dictionary: Dictionary, embed_tokens: nn.Embedding
    ) -> None:
        super().__init__(dictionary)
        self.embed_tokens = embed_tokens
        self.embed_scale = math.sqrt(cfg.decoder_embed_dim)
        self.padding_idx = dictionary.pad()
        self.max_target_positions = cfg.max_target_positions
        self.dropout = nn.Dropout(cfg.dropout)
        self.layers = nn.ModuleList([DecoderLayer(cfg) for _ in range(cfg.decoder_layers)])
        self.final_affine = Affine(cfg.decoder_embed_dim)
        self.output_projection = nn.Linear(
            cfg.decoder_embed_dim, embed_tokens.num_embeddings, bias=False
        )
        if cfg.share_decoder_input_output_embed or cfg.share_all_embeddings:
            self.output_projection.weight = embed_tokens.weight
        else:
            nn.init.normal_(self.output_projection.weight, std=cfg.decoder_embed_dim**-0.5)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: IncrementalState | None = None,
        features_only: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, list[Tensor | None]]]:
        """Predict every next token; the arguments are those of fairseq's Transformer decoder.

        Args:
            prev_output_tokens: (batch, length).
            encoder_out: what the encoder returned.
            incremental_state: cache of step-by-step decoding; only the last position is computed.
            features_only: leave out the output projection.

        Returns:
            (batch, length, vocabulary) scores before the softmax, and ``{"attn": [weights]}``.

        Raises:
            ValueError: if ``length`` exceeds ``--max-target-positions``.
        """
        x, extra = self.extract_features(
            prev_output_tokens, encoder_out, incremental_state, **kwargs
        )
        return (x if features_only else self.output_layer(x)), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: IncrementalState | None = None,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
        **_: object,
    ) -> tuple[Tensor, dict[str, list[Tensor | None]]]:
        """Hidden states in front of the output projection, (batch, length, dim).

        ``attn`` is the cross-attention of ``alignment_layer`` (default: the last), averaged over
        its first ``alignment_heads`` heads (default: all), (batch, length, source length). During
        training it is computed only on demand: the weights cost the fused attention kernel.
        """
        if encoder_out is None:
            raise ValueError("the ResMLP decoder needs the output of an encoder")
        if prev_output_tokens.size(1) > self.max_target_positions:
            raise ValueError(
                f"a target sentence has {prev_output_tokens.size(1)} tokens, but this model was "
                f"trained for at most {self.max_target_positions}: shorten it, or train with a "
                f"larger --max-target-positions."
            )
        (encoder_states,) = encoder_out["encoder_out"]
        encoder_padding_mask = next(iter(encoder_out["encoder_padding_mask"]), None)
        shift = rows = source_rows = None
        if incremental_state is None:
            tokens, shift = left_aligned(prev_output_tokens, self.padding_idx)
            rows = token_rows(tokens.t().eq(self.padding_idx))
            if encoder_padding_mask is not None:
                source_rows = token_rows(encoder_padding_mask.t())
        else:
            tokens = prev_output_tokens[:, -1:]

        x = self.dropout(self.embed_scale * self.embed_tokens(tokens.t()))
        wanted = alignment_layer
        if wanted is None and not self.training:
            wanted = len(self.layers) - 1
        attn: Tensor | None = None
        for index, layer in enumerate(self.layers):
            x, weights = layer(
                x,
                encoder_states,
                encoder_padding_mask,
                incremental_state,
                index == wanted,
                rows,
                source_rows,
            )
            if index == wanted:
                attn = weights[:alignment_heads].mean(dim=0)
        x = self.final_affine(x)
        if shift is not None:
            x = realigned(x, shift)
            if attn is not None:
                attn = realigned(attn.transpose(0, 1), shift).transpose(0, 1)
        return x.transpose(0, 1), {"attn": [attn], "inner_states": []}

    def output_layer(self, features: Tensor) -> Tensor:
        """Project to the vocabulary: (..., dim) -> (..., vocabulary)."""
        scores: Tensor = self.output_projection(features)
        return scores

    def max_positions(self) -> int:
        """The longest target sentence, in tokens with end-of-sentence."""
        return self.max_target_positions
