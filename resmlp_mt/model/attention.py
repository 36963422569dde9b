"""Attention from the target to the source (Vaswani et al. 2017, section 3.2), which ResMLP keeps.

fairseq's ``MultiheadAttention`` is not used: in decoding, it rounds the softmax to float32 and does
not follow hypotheses that move between sentences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resmlp_mt.graphs import is_recording
from resmlp_mt.padding import Layout

FEW_KEYS = 2**18
"""Most numbers in the keys of a batch, a megabyte, for which one call of the kernel is faster."""
SENTENCES = 16
"""Sentences that are attended to in one call if there are many."""


@dataclass(frozen=True)
class Source:
    """The encoder's output for the source sentences.

    ``tokens`` is (tokens, dim); ``layout`` says where they stand. ``is_pad`` is (batch, length),
    True at pads; None if there are no pads.
    """

    tokens: Tensor
    layout: Layout
    is_pad: Tensor | None

    @classmethod
    def of(cls, states: Tensor, is_pad: Tensor | None) -> "Source":
        """The source of states with pads, (length, batch, dim), given ``is_pad``."""
        layout = Layout(*states.shape[:2]) if is_pad is None else Layout.of(is_pad.t())
        has_pads = layout.rows is not None or layout.is_pad is not None
        return cls(layout.pack(states), layout, is_pad if has_pads else None)

    def mask(self) -> Tensor | None:
        """The mask that is added to attention scores: minus infinity at pads, else 0.

        (batch, 1, 1, length), or None if there are no pads.
        """
        if self.is_pad is None:
            return None
        zeros = torch.zeros_like(self.is_pad, dtype=self.tokens.dtype)
        return zeros.masked_fill(self.is_pad, -torch.inf)[:, None, None, :]


class Memory(NamedTuple):
    """The encoded source, as the decoder reads it.

    Keys and values are (decoder_layers, batch, heads, length, dim / heads), and for one layer
    (batch, heads, length, dim / heads). The mask is (batch, 1, 1, length): 0 at tokens and minus
    infinity at pads; None if there are no pads.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None

    @classmethod
    def joined(cls, parts: Sequence["Memory"], rows: Sequence[Sequence[int]]) -> "Memory":
        """The memory of a batch of which each part has some rows."""
        layers, _, heads, _, width = parts[0].keys.shape
        batch, length = sum(map(len, rows)), max(part.keys.size(3) for part in parts)
        keys, values = parts[0].keys.new_zeros(2, layers, batch, heads, length, width)
        mask = keys.new_full((batch, 1, 1, length), -torch.inf)
        for part, its_rows in zip(parts, rows, strict=True):
            its_length = part.keys.size(3)
            keys[:, its_rows, :, :its_length] = part.keys
            values[:, its_rows, :, :its_length] = part.values
            mask[its_rows, :, :, :its_length] = 0.0 if part.mask is None else part.mask
        return cls(keys, values, mask)


class CrossAttention(nn.Module):
    """Multi-head attention of target positions over the source.

    Args:
        dim: channels of the target; also the total width of all heads.
        source_dim: channels of the source.
        heads: number of heads.
        dropout: dropout probability on the weights.
    """

    def __init__(self, dim: int, source_dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.scale = (dim // heads) ** -0.5
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj: nn.Linear | None = nn.Linear(source_dim, dim)
        self.v_proj: nn.Linear | None = nn.Linear(source_dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        # Initialized as fairseq's attention.
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(linear.weight, gain=0.5**0.5)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def keys_and_values(self, source: Source) -> tuple[Tensor, Tensor]:
        """Keys and values of all source positions, (batch, heads, length, dim / heads) each."""
        assert self.k_proj is not None
        assert self.v_proj is not None
        keys, values = (
            source.layout.pad(proj(source.tokens))
            .unflatten(2, (self.heads, -1))
            .permute(1, 2, 0, 3)
            for proj in (self.k_proj, self.v_proj)
        )
        return keys, values

    def forward(
        self,
        x: Tensor,
        memory: Memory,
        layout: Layout | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to all source positions.

        Args:
            x: (batch, queries, dim), or (tokens, dim) with a layout.
            memory: of this layer.
            layout: where the target tokens stand.
            need_weights: also return the weights, which rules out the fused kernel.

        Returns:
            The output, shaped like ``x``, and the weights if asked for, (batch, heads, queries,
            length).
        """
        attended, weights = self.attend(self.q_proj(x), memory, layout, need_weights)
        output: Tensor = self.out_proj(attended)
        return output if layout is None else layout.pack(output), weights

    def attend(
        self,
        queries: Tensor,
        memory: Memory,
        layout: Layout | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`forward` without the projections before and after.

        Returns:
            The weighted values, (batch, queries, dim), or (queries, batch, dim) with a layout; and
            the weights.
        """
        if layout is not None:
            queries = layout.pad(queries).transpose(0, 1)
        queries = queries.view(*queries.shape[:2], self.heads, -1).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            # scaled before the product, which could overflow in float16
            scores = (queries * self.scale) @ memory.keys.transpose(2, 3)
            if memory.mask is not None:
                scores = scores + memory.mask
            weights = scores.softmax(dim=3, dtype=torch.promote_types(scores.dtype, torch.float32))
            attended = F.dropout(weights, dropout).type_as(memory.values) @ memory.values
        else:
            parts = [
                F.scaled_dot_product_attention(*part, dropout, scale=self.scale)
                for part in _parts(queries, *memory)
            ]
            attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        # no copy: the kernel's output lies in memory like the queries
        attended = attended.transpose(1, 2).flatten(2)
        return attended if layout is None else attended.transpose(0, 1), weights


def _parts(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> Sequence[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """A few sentences at a time, without the pads that all of them have.

    In a step of decoding, reading keys and values takes longer than the products. The sentences of
    a batch are usually sorted by length.
    """
    if (
        mask is None
        or keys.numel() <= FEW_KEYS
        or keys.device.type != "cpu"
        or torch.is_grad_enabled()
        or is_recording()
    ):
        return [(queries, keys, values, mask)]
    # the position of the last token: fairseq pads sources on the left
    numbers = torch.arange(1, mask.size(3) + 1)
    longest = (mask.isfinite() * numbers).amax(dim=3).flatten().split(SENTENCES)
    return [
        (q, k[:, :, :length], v[:, :, :length], m[:, :, :, :length])
        for q, k, v, m, length in zip(
            *(x.split(SENTENCES) for x in (queries, keys, values, mask)),
            (int(lengths.max()) for lengths in longest),
            strict=True,
        )
    ]
