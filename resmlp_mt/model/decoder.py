"""The decoder: causal token mixing, cross-attention and feed-forward, each between affine maps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from resmlp_mt.graphs import is_recording
from resmlp_mt.layers import Affine, FeedForward
from resmlp_mt.mixing import create_mixing
from resmlp_mt.mixing_products import Past
from resmlp_mt.model.attention import CrossAttention, Memory, Source
from resmlp_mt.model.cache import FIRST_ROOM, Cache, MixingTables
from resmlp_mt.model.config import ACTIVATIONS, ModelConfig
from resmlp_mt.model.residual import (
    add_branch,
    attention_branch,
    feed_forward_branch,
    mixing_branch,
)
from resmlp_mt.model.stack import Stack, check_length, kept_layers, run_layer, unless_dropped
from resmlp_mt.padding import Layout


class DecoderLayer(nn.Module):
    """X + Aff(A Aff(X)) with A lower triangular, then cross-attention and feed-forward alike."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.decoder_embed_dim
        self.dropout = nn.Dropout(config.dropout)
        self.mixing_pre: Affine | None = Affine(dim)
        self.token_mixing = create_mixing(
            config.decoder_mixing, dim, config.max_target_positions, causal=True
        )
        self.mixing_post: Affine | None = Affine(dim, config.layer_scale_init)
        self.encoder_attn_pre: Affine | None = Affine(dim)
        self.encoder_attn = CrossAttention(
            dim, config.encoder_embed_dim, config.decoder_attention_heads, config.attention_dropout
        )
        self.encoder_attn_post: Affine | None = Affine(dim, config.layer_scale_init)
        self.ffn_pre: Affine | None = Affine(dim)
        self.ffn = FeedForward(
            dim,
            config.decoder_ffn_embed_dim,
            ACTIVATIONS[config.activation_fn],
            config.activation_dropout,
        )
        self.ffn_post: Affine | None = Affine(dim, config.layer_scale_init)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        memory: Memory,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Transform the hidden states of all positions.

        Args:
            x: of the target tokens, (tokens, dim).
            layout: where they stand.
            memory: the source, for this layer.
            need_weights: also return the attention weights.

        Returns:
            Hidden states, and the weights if asked for, (batch, heads, length, source length).
        """
        x = mixing_branch(
            x, layout, self.mixing_pre, self.token_mixing, self.mixing_post, self.dropout
        )
        return self._attend_and_feed(x, memory, layout, need_weights)

    def step(
        self,
        x: Tensor,
        past: Past,
        own: Tensor,
        offset: Tensor | None,
        memory: Memory,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Transform the newest position of every hypothesis.

        Args:
            x: (batch, beam, dim).
            past: the earlier positions.
            own: diagonal entry of A for the newest position, see :meth:`TokenMixing.step`.
            offset: offset of the newest position, see :meth:`TokenMixing.step`.
            memory: the source, for this layer.
            need_weights: also return the attention weights.

        Returns:
            Hidden states and the entry for the history, (batch, beam, dim) each, and the weights
            if asked for, (batch, heads, beam, source length).
        """
        mixing = self.mixing_pre, self.mixing_post
        y, entry = self.token_mixing.step(x, *mixing, past, own, offset)
        x = add_branch(x, y, None, self.dropout)
        x, weights = self._attend_and_feed(x, memory, None, need_weights)
        return x, entry, weights

    def _attend_and_feed(
        self, x: Tensor, memory: Memory, layout: Layout | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        attention = self.encoder_attn_pre, self.encoder_attn, self.encoder_attn_post
        x, weights = attention_branch(x, layout, *attention, self.dropout, memory, need_weights)
        x = feed_forward_branch(x, self.ffn_pre, self.ffn, self.ffn_post, self.dropout)
        return x, weights


class Decoder(Stack):
    """A stack of ``decoder_layers`` layers, and the output projection.

    :meth:`decode` takes all positions at once, :meth:`step` one position after the other.
    """

    def __init__(self, config: ModelConfig, embed_tokens: nn.Embedding, *others: Any) -> None:
        layers = [DecoderLayer(config) for _ in range(config.decoder_layers)]
        super().__init__(config, embed_tokens, layers, *others)
        dim = config.decoder_embed_dim
        self.output_projection = nn.Linear(dim, embed_tokens.num_embeddings, bias=False)
        # In a folded model, keys and values of all layers are one product.
        self.kv_proj: nn.Linear | None = None
        if config.share_decoder_input_output_embed or config.share_all_embeddings:
            self.output_projection.weight = embed_tokens.weight
        else:
            nn.init.normal_(self.output_projection.weight, std=dim**-0.5)

    @property
    def _layers(self) -> list[DecoderLayer]:
        return cast("list[DecoderLayer]", self.layers)

    def keys_and_values(self, source: Source) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The source's keys and values for each layer, (batch, heads, length, dim / heads) each."""
        if self.kv_proj is None:
            read = [layer.encoder_attn.keys_and_values(source) for layer in self._layers]
            return [keys for keys, _ in read], [values for _, values in read]
        heads = (2, len(self.layers), self.config.decoder_attention_heads, -1)
        projected = source.layout.pad(self.kv_proj(source.tokens)).unflatten(2, heads)
        keys, values = projected.permute(2, 3, 1, 4, 0, 5).contiguous()
        return keys, values

    def memory(self, source: Source) -> Memory:
        """Keys and values of all layers, computed once per sentence."""
        keys, values = (
            both if isinstance(both, Tensor) else torch.stack(tuple(both))
            for both in self.keys_and_values(source)
        )
        return Memory(keys, values, source.mask())

    def decode(
        self,
        tokens: Tensor,
        layout: Layout,
        source: Source,
        weights_of: int | None = None,
        visit: Callable[[Tensor], object] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Transform all positions of the target sentences.

        Args:
            tokens: (batch, length), padded at the end.
            layout: where they stand.
            source: the encoded source sentences.
            weights_of: the layer whose attention weights are returned.
            visit: called with the states before the first layer and after every layer.

        Returns:
            The input of the output projection, (tokens, dim), and the attention weights, (batch,
            heads, length, source length).

        Raises:
            ValueError: if a sentence is longer than the model allows.
        """
        check_length("target", tokens.size(1), self.longest)
        mask = source.mask()
        keys, values = self.keys_and_values(source)
        x: Tensor = self.dropout(self.embed(layout.pack(tokens.t())))
        if visit is not None:
            visit(x)
        weights: Tensor | None = None
        for index, layer, keep in kept_layers(self.layers, self.config.decoder_layerdrop):
            read = Memory(keys[index], values[index], mask)
            after, found = run_layer(layer, self.config, x, layout, read, index == weights_of)
            x, weights = unless_dropped(keep, after, x), weights if found is None else found
            if visit is not None:
                visit(x)
        if self.final_affine is not None:
            x = self.final_affine(x)
        return x, weights

    def mixing_tables(self, length: int) -> MixingTables:
        """The mixing matrices and offsets of all layers over the first ``length`` positions."""
        dim = self.config.decoder_embed_dim
        mixings = [layer.token_mixing for layer in self._layers]
        matrices = torch.stack([mixing.matrix(length) for mixing in mixings])
        offsets = [mixing.offset(length) for mixing in mixings]
        added = [
            offset.expand(-1, -1, dim // offset.size(1)).flatten(1)
            for offset in offsets
            if offset is not None
        ]
        diagonals = matrices.diagonal(dim1=2, dim2=3).transpose(1, 2)
        if matrices.size(1) > 1:
            diagonals = diagonals.repeat_interleave(dim // matrices.size(1), dim=2)
        return MixingTables(matrices, diagonals, torch.stack(added) if added else None)

    def cache(self, memory: Memory, beam: int) -> Cache:
        """A cache for :meth:`advance`, with ``beam`` hypotheses for each sentence."""
        config = self.config
        return Cache.empty(memory, config.decoder_embed_dim, config.decoder_mixing.heads, beam)

    def advance(
        self,
        tokens: Tensor,
        cache: Cache,
        weights_of: int | None = None,
        visit: Callable[[Tensor], object] | None = None,
    ) -> tuple[Tensor, Cache, Tensor | None]:
        """:meth:`step` with a cache; returns the next cache in place of the entries.

        ``tokens`` may be (batch, 1) if all hypotheses are the same.
        """
        position, tables = cache.position, cache.tables
        if tables is None or self.longest > position == tables.matrices.size(2):
            tables = self.mixing_tables(min(max(FIRST_ROOM, 2 * position), self.longest))
            cache = replace(cache, tables=tables)
        ancestors = cache.ancestors[:, : tokens.size(1)]
        hidden, entries, weights = self.step(
            tokens, cache.past(), ancestors, cache.memory, tables, weights_of, visit
        )
        return hidden, cache.appended(entries), weights

    def step(
        self,
        tokens: Tensor,
        history: Tensor,
        ancestors: Tensor,
        memory: Memory,
        tables: MixingTables | None = None,
        weights_of: int | None = None,
        visit: Callable[[Tensor], object] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Decode the newest token of every hypothesis.

        The hypotheses of a sentence share its history: entries stay where they were written, and
        ``ancestors`` says which of them belong to a hypothesis.

        Args:
            tokens: the newest token of every hypothesis, (batch, beam); end-of-sentence at first.
            history: the entries of all earlier steps, (layers, batch, heads, position, beam, dim /
                heads), where position is the number of these steps; entries without descendants
                must be finite.
            ancestors: the entry of each hypothesis at every earlier position, (batch, beam,
                position), each from 0 to beam - 1.
            memory: the encoded source.
            tables: mixing tables for more positions than there are earlier steps; made here by
                default.
            weights_of: the layer whose attention weights are returned.
            visit: as in :meth:`decode`.

        Returns:
            The input of the output projection, (batch, beam, dim), the entries of this step,
            (layers, batch, heads, beam, dim / heads), and the attention weights, (batch, heads,
            beam, source length).

        Raises:
            ValueError: if ``position`` is not below ``max_target_positions``.
        """
        position, heads, beam = history.size(3), history.size(2), history.size(4)
        check_length("target", position + 1, self.longest)
        if tables is None:
            tables = self.mixing_tables(position + 1)
        x = self.embed(tokens)
        if self.dropout.training:  # --retain-dropout
            x = self.dropout(x)
        if visit is not None:
            visit(x)
        rows = tables.matrices[:, :, position]
        mixing = rows[:, None, :, None, :position]
        if beam > 1 or is_recording():
            descends = ancestors.unsqueeze(3) == torch.arange(beam, device=tokens.device)
            mixing = (mixing.unsqueeze(5) * descends.unsqueeze(1)).flatten(4)
        else:
            mixing = mixing.expand(-1, len(tokens), -1, -1, -1)
        mixing = mixing.flatten(1, 2)
        entries_before = history.flatten(3, 4).flatten(1, 2)
        offsets: Sequence[Tensor | None] = [None] * len(mixing)
        if tables.offsets is not None:
            offsets = tables.offsets[:, position].unbind()
        weights: Tensor | None = None
        entries = []
        # one call for all layers: indexing would be one for each
        parts = zip(
            self._layers, mixing.unbind(), entries_before.unbind(),
            tables.diagonals[:, position].unbind(), offsets,
            memory.keys.unbind(), memory.values.unbind(), strict=True,
        )  # fmt: skip
        for index, (layer, its_mixing, its_past, its_own, offset, keys, values) in enumerate(parts):
            past, read = Past(its_mixing, its_past, heads), Memory(keys, values, memory.mask)
            x, entry, found = layer.step(x, past, its_own, offset, read, index == weights_of)
            weights = weights if found is None else found
            if visit is not None:
                visit(x)
            entries.append(entry)
        stacked = torch.stack(entries).unflatten(3, (heads, -1)).transpose(2, 3)
        if self.final_affine is not None:
            x = self.final_affine(x)
        return x, stacked, weights
