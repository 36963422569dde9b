"""Functions of the residual branches with hand-written gradients, which keep less than autograd.

With g the gradient of y, P = g^T h, and sums over tokens:

    y = alpha (W h + b) + beta     dW_ij = alpha_i P_ij
                                   dalpha_i = sum_j P_ij W_ij + b_i sum g_i
    y = alpha (A h + b) + beta     dalpha = sum (A^T g) h + b g

So the gradients of an affine map after a linear layer come from P, which the gradient of W needs
anyway, and the outputs of W and A are not needed. The map is applied to the output and not to W: it
starts as small as 1e-5, and so small a weight would be rounded to nothing in float16.

Plain autograd computes the same in a line or two for each function: they are in
benchmarks/gradients.py. benchmarks/gradients.md has what each saves: memory above all.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F

from resmlp_mt.mixing_products import blocks, by_head, from_heads, mix
from resmlp_mt.padding import Layout

_Gradients = tuple[Tensor | None, ...]


def _without_autocast(backward: Callable[..., _Gradients]) -> Callable[..., _Gradients]:
    """Turns autocast off: a backward pass chooses the types of its products itself."""

    @once_differentiable
    def wrapped(ctx: Any, grad: Tensor) -> _Gradients:
        device = grad.device.type
        if not torch.is_autocast_enabled(device):
            return backward(ctx, grad)
        with torch.autocast(device, enabled=False):
            return backward(ctx, grad)

    return cast("Callable[..., _Gradients]", wrapped)


class ActivatedLinear(torch.autograd.Function):
    """alpha (W f(x) + b) + beta; (tokens, hidden dim) -> (tokens, dim). No f is the identity.

    Autograd keeps f(x), the largest tensor of a layer, and W f(x) + b too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        alpha: Tensor,
        beta: Tensor,
        activation: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, alpha)
        product = F.linear(x if activation is None else activation(x), weight, bias)
        ctx.activation, ctx.dtype = activation, product.dtype
        return torch.addcmul(beta, product, alpha)

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        x, weight, bias, alpha = ctx.saved_tensors
        needed = ctx.needs_input_grad
        of_x = of_weight = of_alpha = None
        activated = x
        if ctx.activation is not None:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                activated = ctx.activation(x)
                edge = get_gradient_edge(activated)
        of_beta = grad.sum(0)
        if needed[1] or needed[3]:
            product = grad.to(ctx.dtype).t() @ activated.detach().to(ctx.dtype)
            of_alpha = torch.addcmul((product * weight).sum(1), of_beta, bias)
            of_weight = product.mul_(alpha.unsqueeze(1))
        dtype = activated.dtype
        del activated  # its memory is needed for the gradients
        if needed[0]:
            of_x = ((grad * alpha).to(ctx.dtype) @ weight.to(ctx.dtype)).to(dtype)
            if ctx.activation is not None:
                (of_x,) = torch.autograd.grad(edge, x, of_x)
        return of_x, of_weight, of_beta * alpha, of_alpha, of_beta, None


class AffineMixing(torch.autograd.Function):
    """alpha' (A (alpha x + beta) + b) + beta' over the positions of a layout; (tokens, dim) both.

    Pads are zeroed before A. Matrix and offset are as in :func:`mix`. Autograd keeps the padded
    input of A and the output of A too.
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
        of_x = of_alpha = of_beta = of_matrix = of_offset = of_post_alpha = None
        of_post_beta = grad.sum(0) if needed[6] else None
        padded = layout.pad(grad.to(ctx.dtype))
        per_position = padded.sum(1)  # (length, dim)
        if needed[4]:
            of_offset = (per_position * post_alpha).unflatten(1, (heads, -1))
            of_offset = of_offset.sum_to_size(offset.shape).to(offset.dtype)
        if any(needed[:3]) or needed[5]:
            mixed = layout.pack(_transposed(matrix.to(ctx.dtype), padded, causal))
            mixed = mixed.to(torch.promote_types(x.dtype, alpha.dtype))
            sum_x, sum_1 = (mixed * x).sum(0), mixed.sum(0)
            of_alpha, of_beta = post_alpha * sum_x, post_alpha * sum_1
            of_post_alpha = alpha * sum_x + beta * sum_1
            if offset is not None:
                of_post_alpha += (per_position.unflatten(1, (heads, -1)) * offset).sum(0).flatten()
            of_x = mixed.mul_(alpha * post_alpha)
        if needed[3]:
            scaled = padded * post_alpha.to(ctx.dtype)
            entries = layout.pad(torch.addcmul(beta, x, alpha).to(ctx.dtype))
            of_matrix = _outer(heads, scaled, entries, causal).to(matrix.dtype)
        of_post = of_post_alpha, of_post_beta
        return of_x, of_alpha, of_beta, of_matrix, of_offset, *of_post, None, None


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
