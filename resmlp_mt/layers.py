"""The layers of ResMLP (Touvron et al. 2021, arXiv:2105.03404), in torch alone.

With hidden states X, the paper's layer is

    Z = X + Aff_post1((A Aff_pre1(X)^T)^T)      mixing over positions
    Y = Z + Aff_post2(C GELU(B Aff_pre2(Z)))    mixing over channels

:class:`Affine` is Aff, :class:`TokenMixing` is A with its bias, :class:`FeedForward` is B and C.
Hidden states are time-first, (length, batch, dim): mixing over positions is then one matrix
product over (length, batch * dim), without a transpose.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


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

    def matrix(self, length: int) -> Tensor:
        """The matrix applied to an input of ``length`` positions, (length, length).

        Raises:
            ValueError: if ``length`` exceeds ``max_positions``.
        """
        if length > self.max_positions:
            raise ValueError(
                f"the input has {length} positions but the mixing matrix has {self.max_positions}"
            )
        leading = self.weight[:length, :length]
        return leading.tril() if self.causal else leading

    def forward(self, x: Tensor) -> Tensor:
        """Mix all positions: (length, batch, dim) -> (length, batch, dim).

        Raises:
            ValueError: if ``length`` exceeds ``max_positions``.
        """
        length = x.size(0)
        bias = self.bias[:length].unsqueeze(1)
        return torch.addmm(bias, self.matrix(length), x.reshape(length, -1)).view_as(x)

    def last(self, history: Tensor) -> Tensor:
        """The last position of ``forward(history)`` alone: (length, batch, dim) -> (1, batch, dim).

        Costs one row of the matrix; this is the step of incremental decoding.

        Raises:
            ValueError: if ``length`` exceeds ``max_positions``.
        """
        length = history.size(0)
        if length > self.max_positions:
            self.matrix(length)  # raises
        row = self.weight[length - 1 : length, :length]
        mixed = torch.addmm(self.bias[length - 1], row, history.reshape(length, -1))
        return mixed.view(1, *history.shape[1:])


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
