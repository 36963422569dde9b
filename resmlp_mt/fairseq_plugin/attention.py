"""Attention from the target to the source (Vaswani et al. 2017, section 3.2), kept by the paper.

fairseq's ``MultiheadAttention`` is not used: while decoding it rounds the softmax to float32 and
does not follow hypotheses that move between sentences.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resmlp_mt.fairseq_plugin.incremental import IncrementalState, WithIncrementalState
from resmlp_mt.padding import Layout


@dataclass(frozen=True)
class Source:
    """What the encoder returned; its tokens are looked up when they are first needed.

    ``states`` is (length, batch, dim), ``padding_mask`` (batch, length), True at pads, None without
    any.
    """

    states: Tensor
    padding_mask: Tensor | None

    @cached_property
    def layout(self) -> Layout:
        """Where the tokens stand among the states."""
        if self.padding_mask is None:
            return Layout(self.states.size(0), self.states.size(1), None)
        return Layout.of(self.padding_mask.t())

    @cached_property
    def tokens(self) -> Tensor:
        """The states without pads, (tokens, dim)."""
        return self.layout.pack(self.states)


class CrossAttention(WithIncrementalState, nn.Module):
    """Multi-head attention with keys and values computed once per sentence.

    While decoding, the hypotheses of a sentence share its keys and values: they are the queries
    of one product.

    Args:
        dim: channels of the target; also the width of all heads together.
        source_dim: channels of the source.
        heads: number of heads.
        dropout: dropout probability on the weights.
    """

    def __init__(self, dim: int, source_dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.beam_size = 1
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(source_dim, dim)
        self.v_proj = nn.Linear(source_dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        # The starting values of fairseq's attention.
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(linear.weight, gain=0.5**0.5)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def set_beam_size(self, beam_size: int) -> None:
        """Expect ``beam_size`` neighbouring rows of a batch to be hypotheses of one sentence.

        While decoding, these share keys and values; a batch of another form is taken row by row.
        """
        self.beam_size = beam_size

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        source: Source,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from every target position to all source positions.

        Args:
            x: of the target tokens, (tokens, dim).
            layout: where they stand.
            source: what the encoder returned.
            incremental_state: cache of keys and values; ``source`` is read at the first step only.
            need_weights: also return the weights, at the price of the fused kernel.

        Returns:
            (tokens, dim) and, if wanted, weights (heads, batch, length, source length).
        """
        keys, values, mask = self._keys_and_values(source, incremental_state)
        length, batch, _ = layout
        sentences = keys.size(0)
        beam = batch // sentences
        queries = layout.pad(self.q_proj(x)).view(length, sentences, beam, self.heads, -1)
        queries = queries.permute(1, 3, 0, 2, 4).flatten(2, 3)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            # scaled before the product, which could overflow in float16
            scores = (queries * keys.size(3) ** -0.5) @ keys.transpose(2, 3)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            weights = scores.softmax(dim=3, dtype=torch.promote_types(scores.dtype, torch.float32))
            attended = F.dropout(weights, dropout).type_as(values) @ values
            weights = weights.unflatten(2, (length, beam)).permute(1, 0, 3, 2, 4).flatten(1, 2)
        else:
            attended = F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        attended = attended.unflatten(2, (length, beam)).permute(2, 0, 3, 1, 4)
        return self.out_proj(layout.pack(attended.reshape(length, batch, -1))), weights

    def _keys_and_values(
        self, source: Source, incremental_state: IncrementalState | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(sentences, heads, source length, width) twice; mask (sentences, 1, 1, source length).

        The mask is True where a position may be attended to.
        """
        state = self.get_incremental_state(incremental_state, "source")
        if state is not None:
            return state["keys"], state["values"], state["mask"]
        beam = 1
        if incremental_state is not None and self._repeats_sentences(source.states):
            beam = self.beam_size
            mask = source.padding_mask
            source = Source(source.states[:, ::beam], None if mask is None else mask[::beam])
        projected = (proj(source.tokens) for proj in (self.k_proj, self.v_proj))
        keys, values = (
            source.layout.pad(p).unflatten(2, (self.heads, -1)).permute(1, 2, 0, 3)
            for p in projected
        )
        mask = None if source.padding_mask is None else ~source.padding_mask[:, None, None, :]
        if incremental_state is not None:
            kept = {"keys": keys.contiguous(), "values": values.contiguous(), "mask": mask}
            self.set_incremental_state(incremental_state, "source", {**kept, "beam": beam})
        return keys, values, mask

    def _repeats_sentences(self, source: Tensor) -> bool:
        """Whether every ``beam_size`` neighbouring rows of the batch are one sentence."""
        if source.size(1) % self.beam_size != 0:
            return False
        grouped = source.unflatten(1, (-1, self.beam_size))
        return torch.equal(grouped, grouped[:, :, :1].expand_as(grouped))

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> None:
        """Follow a new order of hypotheses, (sentences * beam,) indices."""
        state = self.get_incremental_state(incremental_state, "source")
        if state is None:
            return
        beam = state["beam"]
        sentences = new_order[::beam] // beam
        # Beam search exchanges hypotheses within each sentence at every step: nothing to copy.
        if torch.equal(sentences, torch.arange(len(state["keys"]), device=new_order.device)):
            return
        moved = {
            name: None if state[name] is None else state[name].index_select(0, sentences)
            for name in ("keys", "values", "mask")
        }
        self.set_incremental_state(incremental_state, "source", {**moved, "beam": beam})
