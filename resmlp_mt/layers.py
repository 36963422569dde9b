"""The layers of ResMLP (Touvron et al. 2021, arXiv:2105.03404), in torch alone.

With hidden states X, the paper's layer is

    Z = X + Aff_post1((A Aff_pre1(X)^T)^T)      mixing over positions
    Y = Z + Aff_post2(C GELU(B Aff_pre2(Z)))    mixing over channels

:class:`Affine` is Aff and :class:`FeedForward` is B and C; A is in :mod:`resmlp_mt.mixing`.
Sentences are mixed time-first, (length, batch, dim), so that mixing over positions is one matrix
product over (length, batch * dim), without a transpose.

An affine map next to a linear layer can become part of it: :func:`merged_before` and
:func:`merged_after`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

LEAST_GELU = -0.17
"""A bound that GELU never falls below: its minimum is -0.16997."""


class Affine(nn.Module):
    """Aff(x) = diag(alpha) x + beta, applied to every token (section 2 of the paper).

    Shapes: input and output (..., dim).

    Args:
        dim: number of channels.
        init_scale: initial alpha: 1 before a sublayer, the LayerScale value after it.
        bias: False makes the module a plain LayerScale, as in the authors' image code.
    """

    def __init__(
        self,
        dim: int,
        init_scale: float = 1.0,
        bias: bool = True,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((dim,), init_scale, device=device))
        self.beta = nn.Parameter(torch.zeros(dim, device=device)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        beta = self.beta
        return x * self.alpha if beta is None else torch.addcmul(beta, x, self.alpha)


@torch.no_grad()
def merged_before(affine: Affine, linear: nn.Linear) -> nn.Linear:
    """One linear layer for linear(affine(x)): W (alpha x + beta) + b = (W alpha) x + (W beta + b).

    It has a bias if one of the two has one, and the dtype of the arguments.
    """
    bias: Tensor | None = linear.bias
    if affine.beta is not None:
        shift = linear.weight @ affine.beta
        bias = shift if bias is None else bias + shift
    return linear_of(linear.weight * affine.alpha, bias)


@torch.no_grad()
def merged_after(linear: nn.Linear, affine: Affine) -> nn.Linear:
    """One linear layer for affine(linear(x)): alpha (W x + b) + beta."""
    bias: Tensor | None = affine.beta
    if linear.bias is not None:
        scaled = affine.alpha * linear.bias
        bias = scaled if bias is None else scaled + bias
    return linear_of(affine.alpha.unsqueeze(1) * linear.weight, bias)


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer for inference with this weight and a copy of this bias."""
    linear = nn.Linear(weight.size(1), weight.size(0), bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


class FeedForward(nn.Module):
    """C activation(B x): the mixing over channels.

    Weights start Xavier-uniform with zero biases, as in fairseq's Transformer.

    Shapes: input and output (..., dim).

    Args:
        dim: number of channels.
        hidden_dim: rows of B.
        activation: GELU in the paper.
        activation_dropout: dropout probability after the activation.
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
        hidden = self.activation(self.fc1(x))
        if self.training:
            hidden = self.activation_dropout(hidden)
        output: Tensor = self.fc2(hidden)
        return output


def projection(dim: int) -> nn.Linear:
    """A linear layer from ``dim`` to ``dim`` channels, started Xavier-uniform with zero bias."""
    linear = nn.Linear(dim, dim)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
