"""The decoder: causal token mixing, cross-attention and feed-forward, each between affine maps."""

import math
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn

from resmlp_mt.fairseq_plugin.attention import CrossAttention, Source
from resmlp_mt.fairseq_plugin.branches import add_branch, feed_forward_branch, mixing_branch
from resmlp_mt.fairseq_plugin.config import ResMLPConfig, activation
from resmlp_mt.fairseq_plugin.incremental import IncrementalState, WithIncrementalState
from resmlp_mt.layers import Affine, FeedForward, TokenMixing
from resmlp_mt.padding import Layout, left_aligned, realigned

FIRST_ROOM = 32
"""Positions that the cache of step-by-step decoding starts with; it is doubled when it is full."""


class _History:
    """Inputs of A at earlier steps, (room, batch, dim), of which ``used`` are written.

    Copies of an incremental state share it until one of them goes on.
    """

    def __init__(self, inputs: Tensor, used: int) -> None:
        self.inputs = inputs
        self.used = used

    def appended(self, length: int, x: Tensor) -> "_History":
        """Its first ``length`` inputs and x, (1, batch, dim): in place if nothing is lost by it."""
        inputs = self.inputs
        if torch.is_grad_enabled():
            return _History(torch.cat([inputs[:length], x]), length + 1)
        is_frozen = inputs.is_inference() and not torch.is_inference_mode_enabled()
        if self.used != length or length == len(inputs) or is_frozen:
            bigger = x.new_empty(max(FIRST_ROOM, 2 * length), *x.shape[1:])
            bigger[:length] = inputs[:length]
            return _History(bigger, length).appended(length, x)
        inputs[length] = x[0]
        self.used += 1
        return self


class CausalMixing(WithIncrementalState, TokenMixing):
    """Lower-triangular token mixing that can go on from a cache of its earlier inputs."""

    def step(self, x: Tensor, incremental_state: IncrementalState) -> Tensor:
        """Mix the newest position into those seen before: (1, batch, dim) -> (1, batch, dim)."""
        state = self.get_incremental_state(incremental_state, "history")
        history, length = (
            (_History(x[:0], 0), 0) if state is None else (state["inputs"], state["length"])
        )
        history = history.appended(length, x)
        self._keep(incremental_state, history, length + 1)
        return self.last(history.inputs[: length + 1])

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> None:
        """Follow a new order of hypotheses; (batch,) indices."""
        state = self.get_incremental_state(incremental_state, "history")
        if state is None:
            return
        inputs, length = state["inputs"].inputs, state["length"]
        # Of greedy search; a GPU would have to be waited for to know.
        if inputs.is_cpu and torch.equal(new_order, torch.arange(inputs.size(1))):
            return
        if torch.is_grad_enabled():
            reordered = inputs[:length].index_select(1, new_order)
        else:
            reordered = inputs.new_empty(len(inputs), len(new_order), inputs.size(2))
            torch.index_select(inputs[:length], 1, new_order, out=reordered[:length])
        self._keep(incremental_state, _History(reordered, length), length)

    def _keep(self, incremental_state: IncrementalState, history: _History, length: int) -> None:
        state = {"inputs": history, "length": length}
        self.set_incremental_state(incremental_state, "history", state)


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
        layout: Layout,
        source: Source,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Transform hidden states.

        Args:
            x: of the target tokens, (tokens, dim).
            layout: where they stand; with ``incremental_state`` all are the newest of their
                sentences.
            source: what they attend to.
            incremental_state: fairseq's cache of the positions seen so far.
            need_weights: also return the attention weights.

        Returns:
            Hidden states, shaped like ``x``, and weights (heads, batch, length, source length).
        """
        if incremental_state is None:
            x = mixing_branch(
                x, layout, self.mixing_pre, self.token_mixing, self.mixing_post, self.dropout
            )
        else:
            newest = layout.pad(self.mixing_pre(x))
            y = layout.pack(self.token_mixing.step(newest, incremental_state))
            x = add_branch(x, y, self.mixing_post, self.dropout)
        y, weights = self.encoder_attn(
            self.encoder_attn_pre(x), layout, source, incremental_state, need_weights
        )
        x = add_branch(x, y, self.encoder_attn_post, self.dropout)
        x = feed_forward_branch(x, self.ffn_pre, self.ffn, self.ffn_post, self.dropout)
        return x, weights


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
            (batch, length, vocabulary) scores before the softmax, zeros at pads, and
            ``{"attn": [weights]}``.

        Raises:
            ValueError: if ``length`` exceeds ``--max-target-positions``.
        """
        x, extra = self.extract_features(
            prev_output_tokens, encoder_out, incremental_state, **kwargs
        )
        if features_only:
            return x, extra
        if incremental_state is not None:
            return self.output_layer(x), extra
        # The largest product of all: it leaves out pads, too, in the order of the batch.
        layout = Layout.of(prev_output_tokens.eq(self.padding_idx))
        return layout.pad(self.output_layer(layout.pack(x))), extra

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
        shift = None
        if incremental_state is None:
            tokens, shift = left_aligned(prev_output_tokens, self.padding_idx)
            layout = Layout.of(tokens.t().eq(self.padding_idx))
        else:
            layout = Layout(1, len(prev_output_tokens), None)
            tokens = prev_output_tokens[:, -1:]
        source = Source(encoder_states, encoder_padding_mask)

        x = self.dropout(self.embed_scale * self.embed_tokens(layout.pack(tokens.t())))
        wanted = alignment_layer
        if wanted is None and not self.training:
            wanted = len(self.layers) - 1
        attn: Tensor | None = None
        for index, layer in enumerate(self.layers):
            x, weights = layer(x, layout, source, incremental_state, index == wanted)
            if index == wanted:
                attn = weights[:alignment_heads].mean(dim=0)
        x = layout.pad(self.final_affine(x))
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
