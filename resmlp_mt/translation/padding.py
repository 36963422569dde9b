"""Padding sides: the row of a mixing matrix is a position, so sentences must start at row 0."""

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
