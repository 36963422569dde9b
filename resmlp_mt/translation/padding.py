"""Padding: its side matters (row 0 of a mixing matrix is position 0), and it costs no products."""

from collections.abc import Callable

import torch
from torch import Tensor


def left_aligned(tokens: Tensor, pad: int) -> tuple[Tensor, Tensor | None]:
    """Move the padding of every row behind the sentence.

    Args:
        tokens: (batch, length), padded with ``pad`` on either side.

    Returns:
        The rolled tokens, (batch, length), and the number of leading pads that each row had,
        (batch,), or None where no row had any.
    """
    is_token = tokens.ne(pad)
    if bool((is_token[:, 0] | ~is_token.any(dim=1)).all()):
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


def token_rows(is_pad: Tensor) -> Tensor | None:
    """Where tokens stand in flattened hidden states.

    Args:
        is_pad: (length, batch), True at pads.

    Returns:
        Indices into length * batch for :func:`on_tokens`; None where there are no pads.
    """
    return is_pad.logical_not().flatten().nonzero().squeeze(1) if bool(is_pad.any()) else None


def on_tokens(function: Callable[[Tensor], Tensor], x: Tensor, rows: Tensor | None) -> Tensor:
    """Apply a position-wise function to tokens alone, and leave zeros at pads.

    Batches of fairseq are a tenth to a quarter pads, on which a linear layer would be wasted.

    Args:
        function: (tokens, dim) -> (tokens, any dim).
        x: (length, batch, dim).
        rows: of :func:`token_rows`.

    Returns:
        (length, batch, any dim).
    """
    if rows is None:
        return function(x)
    y = function(x.flatten(0, 1).index_select(0, rows))
    padded = y.new_zeros(x.size(0) * x.size(1), y.size(1)).index_copy(0, rows, y)
    return padded.view(x.size(0), x.size(1), -1)
