"""Functions of the residual branches with gradients by hand, which keep less than autograd.

With h = alpha x + beta, g the gradient of y and sums over tokens:

    y = W h + b                dW = g^T h       dh = g W    dalpha = sum dh x     dx = alpha dh
    y = alpha (W h + b) + beta dW = alpha g^T h             dalpha_i = sum_j (g^T h)_ij W_ij + b g
    y = alpha (A h + b) + beta                              dalpha = sum (A^T g) h + b g

The last two need no output of W or A.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from resmlp_mt.mixing_products import blocks, by_head, from_heads, mix
from resmlp_mt.padding import Layout

_Gradients = tuple[Tensor | None, ...]


def _without_autocast(backward: Callable[..., _Gradients]) -> Callable[..., _Gradients]:
    """Turns autocast off: a backward pass chooses the types of its products itself."""

    @once_differentiable
    def wrapped(ctx: Any, grad: Tensor) -> _Gradients:
        with torch.autocast(grad.device.type, enabled=False):
            return backward(ctx, grad)

    return cast("Callable[..., _Gradients]", wrapped)


def _affine_gradients(
    needed: Sequence[bool], x: Tensor, alpha: Tensor, grad: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, alpha and beta, if needed, from the gradient of alpha x + beta.

    The first may take the place of ``grad``.
    """
    grad = grad.to(torch.promote_types(x.dtype, alpha.dtype))
    of_alpha = (grad * x).sum(0) if needed[1] else None
    of_beta = grad.sum(0) if needed[2] else None
    return grad.mul_(alpha) if needed[0] else None, of_alpha, of_beta


class AffineLinear(torch.autograd.Function):
    """W (alpha x + beta) + b; (tokens, dim) -> (tokens, hidden dim)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, alpha, beta, weight)
        return F.linear(torch.addcmul(beta, x, alpha), weight, bias)

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        x, alpha, beta, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        of_weight = None
        if needed[3]:
            of_weight = grad.t() @ torch.addcmul(beta, x, alpha).to(grad.dtype)
        of_affine: _Gradients = (None, None, None)
        if any(needed[:3]):
            of_affine = _affine_gradients(needed, x, alpha, grad @ weight.to(grad.dtype))
        return *of_affine, of_weight, grad.sum(0) if needed[4] else None


class ActivatedLinear(torch.autograd.Function):
    """alpha (W f(x) + b) + beta; (tokens, hidden dim) -> (tokens, dim)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        alpha: Tensor,
        beta: Tensor,
        activation: Callable[[Tensor], Tensor],
    ) -> Tensor:
        product = F.linear(activation(x), weight, bias)
        ctx.save_for_backward(x, weight, bias, alpha)
        ctx.activation, ctx.dtype = activation, product.dtype
        return torch.addcmul(beta, product, alpha)

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        x, weight, bias, alpha = ctx.saved_tensors
        needed = ctx.needs_input_grad
        of_x = of_weight = of_bias = of_alpha = of_beta = None
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            activated = ctx.activation(x)
        if any(needed[2:5]):
            of_beta = grad.sum(0)
            of_bias = of_beta * alpha
        if needed[1] or needed[3]:
            before_scaling = grad.to(ctx.dtype).t() @ activated.detach().to(ctx.dtype)
            if needed[3]:
                of_alpha = (before_scaling * weight).sum(1) + of_beta * bias
            of_weight = before_scaling.mul_(alpha.unsqueeze(1))
        if needed[0]:
            of_activated = (grad * alpha).to(ctx.dtype) @ weight.to(ctx.dtype)
            (of_x,) = torch.autograd.grad(activated, x, of_activated.to(activated.dtype))
        return of_x, of_weight, of_bias, of_alpha, of_beta, None


class AffineMixing(torch.autograd.Function):
    """alpha' (A (alpha x + beta) + b) + beta' over the positions of a layout; (tokens, dim) both.

    Pads are zeroed before A. Matrix and offset are those of :func:`mix`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alpha: Tensor,
        beta: Tensor,
        matrix: Tensor,
        offset: Tensor | None,
        post_alpha: Tensor,
        post_beta: Tensor,
        layout: Layout,
        causal: bool,
    ) -> Tensor:
        mixed = mix(matrix, offset, layout.pad(torch.addcmul(beta, x, alpha)), causal)
        ctx.save_for_backward(x, alpha, beta, matrix, offset, post_alpha)
        ctx.layout, ctx.causal, ctx.dtype = layout, causal, mixed.dtype
        return torch.addcmul(post_beta, layout.pack(mixed), post_alpha)

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        x, alpha, beta, matrix, offset, post_alpha = ctx.saved_tensors
        layout, causal, heads = ctx.layout, ctx.causal, len(matrix)
        needed = ctx.needs_input_grad
        affine = torch.addcmul(beta, x, alpha).to(ctx.dtype)
        of_affine: _Gradients = (None, None, None)
        of_matrix = of_offset = of_post_alpha = None
        of_post_beta = grad.sum(0) if needed[6] else None
        padded = layout.pad(grad.to(ctx.dtype))
        per_position = padded.sum(1)  # (length, dim)
        if needed[4]:
            of_offset = (per_position * post_alpha).unflatten(1, (heads, -1))
            of_offset = of_offset.sum_to_size(offset.shape).to(offset.dtype)
        if any(needed[:3]) or needed[5]:
            mixed = layout.pack(_transposed(matrix.to(ctx.dtype), padded, causal))
            if needed[5]:
                of_post_alpha = (mixed * affine).sum(0)
                if offset is not None:
                    of_post_alpha += (
                        (per_position.unflatten(1, (heads, -1)) * offset).sum(0).flatten()
                    )
            of_affine = _affine_gradients(needed, x, alpha, mixed * post_alpha)
        if needed[3]:
            scaled = padded * post_alpha.to(ctx.dtype)
            of_matrix = _outer(heads, scaled, layout.pad(affine), causal).to(matrix.dtype)
        return *of_affine, of_matrix, of_offset, of_post_alpha, of_post_beta, None, None


def _transposed(matrix: Tensor, grad: Tensor, causal: bool) -> Tensor:
    """A^T g, as A x of :func:`mix`; (length, batch, dim) both."""
    flat = by_head(grad, len(matrix))
    parts = []
    for rows in blocks(len(grad), causal):
        later = slice(rows.start, len(grad))
        parts.append(torch.bmm(matrix[:, later, rows].transpose(1, 2), flat[:, later]))
    return from_heads(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), grad.size(1))


def _outer(heads: int, grad: Tensor, x: Tensor, causal: bool) -> Tensor:
    """The gradient of A, g x^T, (heads, length, length); grad and x are (length, batch, dim)."""
    flat, of_output = by_head(x, heads), by_head(grad, heads)
    length = len(grad)
    parts = blocks(length, causal)
    if len(parts) == 1:
        return torch.bmm(of_output, flat.transpose(1, 2))
    of_matrix = grad.new_zeros(heads, length, length)
    for rows in parts:
        seen = slice(0, rows.stop)
        of_matrix[:, rows, seen] = torch.bmm(of_output[:, rows], flat[:, seen].transpose(1, 2))
    return of_matrix


class DroppedAddition(torch.autograd.Function):
    """x + m y / share, for a mask m with that share of ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, kept: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.share = share
        return torch.addcmul(x, y, kept, value=1 / share)

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        (kept,) = ctx.saved_tensors
        of_y = (grad * kept).mul_(1 / ctx.share) if ctx.needs_input_grad[1] else None
        return grad, of_y, None, None
