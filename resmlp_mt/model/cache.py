"""The cache of step-by-step decoding.

Nothing is copied when the beam changes: the hypotheses of a sentence share its history, entries
stay where they were written, and each hypothesis knows which of them are its own.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from resmlp_mt.model.attention import Memory

FIRST_ROOM = 32
"""Positions that a cache has room for at first; the room doubles when it is full."""


class MixingTables(NamedTuple):
    """The mixing matrices of all layers, (layers, heads, length, length), and their offsets.

    ``diagonals`` are the matrices' diagonals, for each channel: (layers, length, dim), or (layers,
    length, 1) with one head. Offsets are (layers, length, dim); None if the variant has none.
    """

    matrices: Tensor
    diagonals: Tensor
    offsets: Tensor | None


class History:
    """Entries of earlier steps, (layers, batch, heads, room, beam, dim / heads).

    ``used`` positions are written. Copies of a cache share a history until one of them continues.
    """

    def __init__(self, entries: Tensor, used: int) -> None:
        self.entries = entries
        self.used = used

    def appended(self, length: int, entries: Tensor) -> "History":
        """Its first ``length`` positions and one more; in place if that overwrites nothing.

        Args:
            length: number of positions that are kept.
            entries: (layers, batch, heads, beam or 1, dim / heads).
        """
        room = self.entries
        if torch.is_grad_enabled():
            newest = entries.unsqueeze(3).expand(*room.shape[:3], 1, *room.shape[4:])
            return History(torch.cat([room[:, :, :, :length], newest], dim=3), length + 1)
        is_frozen = room.is_inference() and not torch.is_inference_mode_enabled()
        if self.used != length or length == room.size(3) or is_frozen:
            shape = list(room.shape)
            shape[3] = max(FIRST_ROOM, 2 * length)
            bigger = room.new_empty(shape)
            bigger[:, :, :, :length] = room[:, :, :, :length]
            return History(bigger, length).appended(length, entries)
        room[:, :, :, length] = entries
        self.used += 1
        return self


@dataclass(frozen=True)
class Cache:
    """What a batch has decoded so far; methods return a new cache.

    Attributes:
        memory: keys and values, once per sentence.
        history: entries of the earlier steps.
        ancestors: the entry of each hypothesis at every earlier position, (batch, beam,
            position).
        tables: the mixing of all layers over the first positions, once it has been computed.
    """

    memory: Memory
    history: History
    ancestors: Tensor
    tables: MixingTables | None = None

    @classmethod
    def empty(cls, memory: Memory, dim: int, mixing_heads: int, beam: int) -> "Cache":
        """The cache before the first step, with ``beam`` hypotheses for each sentence."""
        layers, batch = memory.keys.shape[:2]
        history = memory.keys.new_empty(layers, batch, mixing_heads, 0, beam, dim // mixing_heads)
        ancestors = torch.empty(batch, beam, 0, dtype=torch.long, device=history.device)
        return cls(memory, History(history, 0), ancestors)

    @property
    def position(self) -> int:
        """The number of steps so far."""
        return self.ancestors.size(2)

    @property
    def beam(self) -> int:
        """The number of hypotheses for each sentence."""
        return self.ancestors.size(1)

    def past(self) -> Tensor:
        """The entries of the earlier steps, (layers, batch, heads, position, beam, dim / heads)."""
        return self.history.entries[:, :, :, : self.position]

    def appended(self, entries: Tensor) -> "Cache":
        """With one position more, (layers, batch, heads, beam or 1, dim / heads)."""
        batch, beam, position = self.ancestors.shape
        if beam == 1:
            ancestors = self.ancestors.new_zeros(batch, 1, position + 1)
        else:
            own = torch.arange(beam, device=self.ancestors.device).view(1, beam, 1)
            ancestors = torch.cat([self.ancestors, own.expand(batch, beam, 1)], dim=2)
        history = self.history.appended(position, entries)
        return Cache(self.memory, history, ancestors, self.tables)

    def followed(self, parents: Tensor) -> "Cache":
        """With every hypothesis continuing one of its sentence, ``parents``, (batch, beam)."""
        if self.beam == 1:
            return self
        index = parents.unsqueeze(2).expand_as(self.ancestors)
        ancestors = self.ancestors.gather(1, index)
        return Cache(self.memory, self.history, ancestors, self.tables)

    def moved(self, sources: list[int], targets: list[int], left: int) -> "Cache":
        """Move sentences to other rows, in place, and keep the first ``left`` rows.

        Args:
            sources: rows that move.
            targets: the rows that they move to; as many.
            left: number of rows that are kept afterwards.
        """
        keys, values, mask = self.memory
        if len(sources):
            for moving in (keys, values, self.past()):
                moving[:, targets] = moving[:, sources]
            for first in (self.ancestors, mask):
                if first is not None:
                    first[targets] = first[sources]
        memory = Memory(keys[:, :left], values[:, :left], None if mask is None else mask[:left])
        kept = History(self.history.entries[:, :left], self.history.used)
        return replace(self, memory=memory, history=kept, ancestors=self.ancestors[:left])

    def reordered(self, order: Tensor) -> "Cache":
        """Any choice of hypotheses, (new batch * beam,) indices into batch * beam.

        Whole sentences may leave or change places; then they are copied. If the hypotheses of a
        sentence end up in several places, every hypothesis gets a copy of its own.
        """
        beam, batch = self.beam, len(self.ancestors)
        sentences, hypotheses = order // beam, order % beam
        if len(order) % beam == 0:
            grouped = sentences.view(-1, beam)
            if torch.equal(grouped, grouped[:, :1].expand_as(grouped)):
                chosen = grouped[:, 0]
                cache = self
                if not torch.equal(chosen, torch.arange(batch, device=chosen.device)):
                    cache = self._selected(chosen)
                return cache.followed(hypotheses.view(-1, beam))
        return self._one_by_one()._selected(order)

    def _one_by_one(self) -> "Cache":
        """The same cache with every hypothesis as a sentence of its own."""
        beam, position = self.beam, self.position
        layers, batch, heads, _, _, width = self.history.entries.shape
        index = self.ancestors.permute(0, 2, 1)[None, :, None, :, :, None]
        shape = (layers, batch, heads, position, beam, width)
        history = self.past().gather(4, index.expand(shape))
        history = history.permute(0, 1, 4, 2, 3, 5).flatten(1, 2).unsqueeze(4)
        keys, values, mask = self.memory
        memory = Memory(
            keys.repeat_interleave(beam, 1),
            values.repeat_interleave(beam, 1),
            None if mask is None else mask.repeat_interleave(beam, 0),
        )
        ancestors = self.ancestors.new_zeros(batch * beam, 1, position)
        return replace(self, memory=memory, history=History(history, position), ancestors=ancestors)

    def _selected(self, rows: Tensor) -> "Cache":
        """Copies of some sentences."""
        position, history = self.position, self.history.entries
        if torch.is_grad_enabled():
            selected = self.past().index_select(1, rows)
        else:  # with room to continue
            selected = history.new_empty(len(history), len(rows), *history.shape[2:])
            selected[:, :, :, :position] = self.past().index_select(1, rows)
        keys, values, mask = self.memory
        memory = Memory(
            keys.index_select(1, rows),
            values.index_select(1, rows),
            None if mask is None else mask.index_select(0, rows),
        )
        ancestors = self.ancestors.index_select(0, rows)
        return replace(
            self, memory=memory, history=History(selected, position), ancestors=ancestors
        )
