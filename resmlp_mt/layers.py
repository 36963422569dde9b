"""The layers of ResMLP (Touvron et al. 2021, arXiv:2105.03404), in torch alone.

With hidden states X, the paper's layer is

    Z = X + Aff_post1((A Aff_pre1(X)^T)^T)      mixing over positions
    Y = Z + Aff_post2(C GELU(B Aff_pre2(Z)))    mixing over channels

:class:`Affine` is Aff, :class:`TokenMixing` is A with its bias, :class:`FeedForward` is B and C.
Hidden states are time-first, (length, batch, dim): mixing over positions is then one matrix
product over (length, batch * dim), without a transpose.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

CAUSAL_ROWS = 128
"""Rows of a triangular matrix that are multiplied together."""


class Affine(nn.Module):
    """Aff(x) = diag(alpha) x + beta, applied to every token (section 2 of the paper).

    Shapes: input and output (..., dim).

    Args:
        dim: number of channels.
        init_scale: start of alpha; 1 in front of a sublayer, the LayerScale value behind it.
        bias: without it the module is a plain LayerScale, as in the authors' image code.
    """

    def __init__(self, dim: int, init_scale: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((dim,), init_scale))
        self.beta = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.beta is None:
            return x * self.alpha
        return torch.addcmul(self.beta, x, self.alpha)


class TokenMixing(nn.Module):
    """A learned linear layer over positions, the same for every channel.

    The matrix has ``max_positions`` rows; an input of n positions uses the leading n x n
    submatrix (section 3.5 of the paper). With ``causal`` the matrix is lower triangular, so that
    position t receives positions <= t only.

    The start (N(0, 0.02) truncated at two units, zero bias) is that of the authors' image code.

    Args:
        max_positions: the longest input.
        causal: restrict the matrix to its lower triangle.
    """

    def __init__(self, max_positions: int, causal: bool = False) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.causal = causal
        self.weight = nn.Parameter(torch.empty(max_positions, max_positions))
        self.bias = nn.Parameter(torch.zeros(max_positions))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def check(self, length: int) -> None:
        """Refuse inputs that are too long.

        Raises:
            ValueError: if ``length`` exceeds ``max_positions``.
        """
        if length > self.max_positions:
            raise ValueError(
                f"the input has {length} positions but the mixing matrix has {self.max_positions}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Mix all positions: (length, batch, dim) -> (length, batch, dim).

        Raises:
            ValueError: if ``length`` exceeds ``max_positions``.
        """
        self.check(x.size(0))
        return mix(self.weight, self.bias, x, self.causal)

    def last(self, history: Tensor) -> Tensor:
        """The last position of ``forward(history)`` alone: (length, batch, dim) -> (1, batch, dim).

        Costs one row of the matrix; this is the step of incremental decoding.

        Raises:
            ValueError: if ``length`` exceeds ``max_positions``.
        """
        length = history.size(0)
        self.check(length)
        row = self.weight[length - 1 : length, :length]
        mixed = torch.addmm(self.bias[length - 1], row, history.reshape(length, -1))
        return mixed.view(1, *history.shape[1:])


def mix(weight: Tensor, bias: Tensor, x: Tensor, causal: bool) -> Tensor:
    """A x + b with the leading part of ``weight``, or its lower triangle if ``causal``.

    Args:
        weight: (max_positions, max_positions); a leading part of it is a view, never a copy.
        bias: (max_positions,).
        x: (length, batch, dim), as the output; length is at most max_positions.
    """
    length = x.size(0)
    flat = x.reshape(length, -1)
    parts = []
    for rows in blocks(length, causal):
        part = bias[rows].unsqueeze(1)
        if rows.start:
            part = torch.addmm(part, weight[rows, : rows.start], flat[: rows.start])
        part = torch.addmm(part, diagonal_block(weight, rows, causal), flat[rows])
        parts.append(part)
    mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
    return mixed.view_as(x)


def blocks(length: int, causal: bool) -> Iterator[slice]:
    """The rows of A that are multiplied together.

    With ``causal`` these are few, since no block of rows is multiplied with what comes behind it:
    long inputs take little more than half the operations, and only small squares are masked.
    """
    size = CAUSAL_ROWS if causal else length
    for start in range(0, length, max(size, 1)):
        yield slice(start, min(start + size, length))


def diagonal_block(weight: Tensor, rows: slice, causal: bool) -> Tensor:
    """What rows of A take from their own positions."""
    block = weight[rows, rows]
    return block.tril() if causal else block


class FeedForward(nn.Module):
    """C activation(B x): the mixing over channels.

    Weights start Xavier-uniform with zero biases, as in fairseq's Transformer.

    Shapes: input and output (..., dim).

    Args:
        dim: number of channels.
        hidden_dim: rows of B.
        activation: GELU in the paper.
        activation_dropout: dropout probability behind the activation.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        activation: Callable[[Tensor], Tensor] = nn.functional.gelu,
        activation_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.activation_dropout = nn.Dropout(activation_dropout)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.activation_dropout(self.activation(self.fc1(x)))
        output: Tensor = self.fc2(hidden)
        return output
