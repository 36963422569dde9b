"""Padding: at the end, since row 0 of a mixing matrix is position 0, and left out of products."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from resmlp_mt.graphs import is_recording


def left_aligned(tokens: Tensor, pad: int) -> tuple[Tensor, Tensor | None]:
    """Move the padding of every row to the end.

    Args:
        tokens: (batch, length), padded with ``pad`` on either side.

    Returns:
        The rolled tokens, (batch, length), and the number of leading pads that each row had,
        (batch,), or None if no row had any.
    """
    is_token = tokens.ne(pad)
    # A graph cannot branch on its data.
    if not is_recording() and bool((is_token[:, 0] | ~is_token.any(dim=1)).all()):
        return tokens, None
    shift = is_token.long().argmax(dim=1)
    positions = torch.arange(tokens.size(1), device=tokens.device)
    index = (positions + shift.unsqueeze(1)) % tokens.size(1)
    return tokens.gather(1, index), shift


def realigned(x: Tensor, shift: Tensor) -> Tensor:
    """Undo :func:`left_aligned` on hidden states of shape (length, batch, dim)."""
    positions = torch.arange(x.size(0), device=x.device)
    index = (positions.unsqueeze(1) - shift) % x.size(0)
    return x.gather(0, index.unsqueeze(2).expand_as(x))


class Layout(NamedTuple):
    """Where tokens stand in a padded batch.

    Hidden states are (tokens, dim), without pads, so that linear layers do not compute pads. The
    larger a batch is, the more its sentences differ in length.

    ``length`` and ``batch`` are the sizes of the padded batch. ``rows``, (tokens,), are the indices
    of the tokens among length * batch; None if there are no pads. For batch-first data, ``length``
    and ``batch`` change places.

    In a compiled graph, no size may depend on data. There the pads stay among the hidden states,
    (length * batch, dim), and :meth:`pad` zeroes them; ``is_pad``, (length, batch), says where
    they are.
    """

    length: int
    batch: int
    rows: Tensor | None = None
    is_pad: Tensor | None = None

    @classmethod
    def of(cls, is_pad: Tensor) -> "Layout":
        """The layout of a batch, given (length, batch), True at pads."""
        length, batch = is_pad.shape
        if is_recording():
            return cls(length, batch, None, is_pad)
        rows = is_pad.logical_not().flatten().nonzero().squeeze(1) if bool(is_pad.any()) else None
        return cls(length, batch, rows)

    def pack(self, x: Tensor) -> Tensor:
        """Take the tokens of (length, batch, ...): (tokens, ...)."""
        flat = x.flatten(0, 1)
        return flat if self.rows is None else flat.index_select(0, self.rows)

    def pad(self, x: Tensor) -> Tensor:
        """Put (tokens, ...) in their places in (length, batch, ...), among zeros."""
        if self.rows is not None:
            # index_copy_ would keep x for its gradient
            places = x.new_zeros(self.length * self.batch, *x.shape[1:])
            x = places.index_put_((self.rows,), x)
        x = x.view(self.length, self.batch, *x.shape[1:])
        if self.is_pad is not None:
            x = x.masked_fill(self.is_pad.view(*self.is_pad.shape, *[1] * (x.dim() - 2)), 0.0)
        return x


class Aligned(NamedTuple):
    """A batch with padding on either side, moved to the end; ``tokens`` are (batch, length).

    ``shift`` is as in :func:`left_aligned`, ``given`` the length before any padding was cut.
    """

    tokens: Tensor
    layout: Layout
    shift: Tensor | None
    given: int

    @classmethod
    def of(cls, tokens: Tensor, pad: int, most: int) -> "Aligned":
        """Align a batch; from one longer than ``most``, cut the padding that all rows have."""
        given = tokens.size(1)
        tokens, shift = left_aligned(tokens, pad)
        if given > most and not is_recording():
            numbered = torch.arange(1, given + 1, device=tokens.device)
            tokens = tokens[:, : int((tokens.ne(pad) * numbered).max())]
        return cls(tokens, Layout.of(tokens.t().eq(pad)), shift, given)

    def packed(self, x: Tensor) -> Tensor:
        """States where they were given, (batch, length, dim), without pads: (tokens, dim)."""
        x = x.transpose(0, 1)
        if self.shift is not None:
            x = realigned(x, -self.shift)
        return self.layout.pack(x[: self.tokens.size(1)])

    def as_given(self, x: Tensor) -> Tensor:
        """States of the tokens, (tokens, dim), where they were given: (length, batch, dim)."""
        return self.moved_back(self.layout.pad(x))

    def moved_back(self, x: Tensor) -> Tensor:
        """The same for states with pads, (length, batch, dim)."""
        missing = self.given - x.size(0)
        if missing:
            x = nn.functional.pad(x, (0, 0, 0, 0, 0, missing))
        return x if self.shift is None else realigned(x, self.shift)
