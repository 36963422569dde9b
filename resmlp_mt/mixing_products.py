"""Toeplitz matrices, and products of mixing matrices with the entries of sentences, by heads."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from resmlp_mt.graphs import is_recording

CAUSAL_ROWS = 128
"""Rows of a triangular matrix that are multiplied together."""


def mix(matrix: Tensor, offset: Tensor | None, x: Tensor, causal: bool) -> Tensor:
    """A x + b, head by head.

    Args:
        matrix: (heads, length, length), lower triangular if ``causal``.
        offset: (length, heads, 1 or dim / heads).
        x: (length, batch, dim), as the output.
    """
    flat = by_head(x, len(matrix))
    added = None
    if offset is not None and offset.size(2) == 1:
        added, offset = offset.transpose(0, 1), None
    parts = []
    for rows in blocks(x.size(0), causal):
        part, seen = matrix[:, rows, : rows.stop], flat[:, : rows.stop]
        parts.append(
            torch.bmm(part, seen) if added is None else torch.baddbmm(added[:, rows], part, seen)
        )
    mixed = from_heads(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), x.size(1))
    return mixed if offset is None else mixed + offset.flatten(1).unsqueeze(1)


def blocks(length: int, causal: bool) -> Sequence[slice]:
    """The rows of A that are multiplied together.

    With ``causal`` a block has few rows, because it is multiplied only with the positions up to its
    end: long inputs take little more than half the operations.
    """
    if not causal or is_recording():
        return [slice(0, length)]
    starts = range(0, max(length, 1), CAUSAL_ROWS)
    return [slice(start, min(start + CAUSAL_ROWS, length)) for start in starts]


def by_head(x: Tensor, heads: int) -> Tensor:
    """(length, batch, dim) -> (heads, length, batch * dim / heads)."""
    if heads == 1:
        return x.reshape(1, x.size(0), -1)
    by_channel: Tensor = x.unflatten(2, (heads, -1))
    return by_channel.permute(2, 0, 1, 3).flatten(2)


def from_heads(x: Tensor, batch: int) -> Tensor:
    """(heads, length, batch * dim / heads) -> (length, batch, dim)."""
    if len(x) == 1:
        return x.view(x.size(1), batch, -1)
    by_sentence: Tensor = x.unflatten(2, (batch, -1))
    return by_sentence.permute(1, 2, 0, 3).flatten(2)


class Past(NamedTuple):
    """The earlier positions' contribution to the newest one, in step-by-step decoding.

    Attributes:
        weights: entries of A, (batch * heads, beam, positions * beam); zero where a hypothesis
            does not go back to the entry.
        history: the entries, (batch * heads, positions * beam, dim / heads).
        heads: number of heads.
    """

    weights: Tensor
    history: Tensor
    heads: int

    def added_to(self, x: Tensor) -> Tensor:
        """The sum of x, (batch, beam, dim), and the mixed history."""
        if self.heads == 1:
            return torch.baddbmm(x, self.weights, self.history)
        if x.size(1) == 1 and not is_recording():
            by_head = x.view(len(self.weights), 1, -1)
            return torch.baddbmm(by_head, self.weights, self.history).view(x.shape)
        mixed = torch.bmm(self.weights, self.history)
        # len(mixed) would be a constant to an exporter
        mixed = mixed.view(mixed.size(0) // self.heads, self.heads, *mixed.shape[1:])
        return x + mixed.transpose(1, 2).flatten(2)


def toeplitz(weights: Tensor) -> Tensor:
    """The matrices A_ts = w_(t - s).

    Args:
        weights: of the distances length - 1, ..., 1 - length: (heads, 2 length - 1).

    Returns:
        (heads, length, length).
    """
    heads, distances = weights.shape
    length = (distances + 1) // 2
    # Row t begins at distance t: copies of all weights, one number longer than the rows that
    # they are cut into, so that each row begins one number earlier than the one above.
    copies = F.pad(weights, (0, 1)).unsqueeze(1).expand(-1, length, -1).flatten(1)
    rows = copies[:, : length * distances].view(heads, length, distances)
    return rows[:, :, length - 1 :]


def is_toeplitz(matrix: Tensor) -> bool:
    """Whether all diagonals of the last two dimensions are constant: only distances count."""
    return torch.equal(matrix[..., 1:, 1:], matrix[..., :-1, :-1])


def diagonals(matrix: Tensor) -> Tensor:
    """The numbers that :func:`toeplitz` makes such matrices from."""
    return torch.cat([matrix[:, :, 0].flip(1), matrix[:, 0, 1:]], dim=1)
