"""The residual branches of the translation model, x + dropout(Aff(f(Aff(x)))).

While they are trained, nothing is kept that the backward pass computes again, or goes without:
neither the outputs of affine maps and of the activation, nor padded inputs of A. Of each token
there are kept x, B Aff(x) in the feed-forward layer, and one byte per channel for dropout. With
h = alpha x + beta, g the gradient of y and sums over tokens:

    y = W h + b                dW = g^T h       dh = g W    dalpha = sum dh x     dx = alpha dh
    y = alpha (W h + b) + beta dW = alpha g^T h             dalpha_i = sum_j (g^T h)_ij W_ij + b g
    y = alpha (A h + b) + beta                              dalpha = sum (A^T g) h + b g

where the last two need no output of W or A.

This holds for the branches of A and of the feed-forward layer without ``--activation-dropout``.
The modules themselves are called without gradients, and where somebody could tell: with hooks,
forward methods of one's own or activations that are modules, in ``torch.func`` and in
``torch.compile``.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from resmlp_mt.layers import Affine, FeedForward, TokenMixing, blocks, diagonal_block, mix
from resmlp_mt.padding import Layout

_Gradients = tuple[Tensor | None, ...]
_KNOWN = {kind.forward for kind in (Affine, FeedForward, TokenMixing, nn.Dropout, nn.Linear)}


def mixing_branch(
    x: Tensor, layout: Layout, pre: Affine, mixing: TokenMixing, post: Affine, dropout: nn.Dropout
) -> Tensor:
    """x + dropout(post(mixing(pre(x)))), without what stands at pads; (tokens, dim) both.

    Raises:
        ValueError: if the layout has more positions than the matrix.
    """
    if not _may_recompute(pre, mixing, post):
        return _add(x, post(layout.pack(mixing(layout.pad(pre(x))))), dropout)
    mixing.check(layout.length)
    y = _AffineMixing.apply(
        x,
        pre.alpha,
        pre.beta,
        mixing.weight,
        mixing.bias,
        post.alpha,
        post.beta,
        layout,
        mixing.causal,
    )
    return _add(x, y, dropout)


def feed_forward_branch(
    x: Tensor, pre: Affine, ffn: FeedForward, post: Affine, dropout: nn.Dropout
) -> Tensor:
    """x + dropout(post(ffn(pre(x)))); (tokens, dim) both."""
    fc1, fc2 = ffn.fc1, ffn.fc2
    inner = ffn.activation_dropout
    if not _may_recompute(pre, ffn, fc1, inner, fc2, post):
        return _add(x, post(ffn(pre(x))), dropout)
    hidden = _AffineLinear.apply(x, pre.alpha, pre.beta, fc1.weight, fc1.bias)
    if inner.training and inner.p:
        y = post(fc2(inner(ffn.activation(hidden))))
    else:
        y = _ActivatedLinear.apply(
            hidden, fc2.weight, fc2.bias, post.alpha, post.beta, ffn.activation
        )
    return _add(x, y, dropout)


def add_branch(x: Tensor, y: Tensor, post: Affine, dropout: nn.Dropout) -> Tensor:
    """x + dropout(post(y)); (tokens, dim) all."""
    return _add(x, post(y), dropout)


def _add(x: Tensor, y: Tensor, dropout: nn.Dropout) -> Tensor:
    """x + dropout(y), which draws the same numbers with and without gradients."""
    if not (dropout.training and 0 < dropout.p < 1 and _are_plain(dropout)):
        return x + cast(Tensor, dropout(y))
    added: Tensor = _DroppedAddition.apply(x, y, *keep_mask(y, dropout.p))
    return added


def _may_recompute(*modules: nn.Module) -> bool:
    return torch.is_grad_enabled() and _are_plain(*modules)


def _are_plain(*modules: nn.Module) -> bool:
    """Whether these modules do nothing beyond their equations, and only autograd looks on."""
    return not (
        torch.compiler.is_compiling()  # which decides by itself what to keep
        or torch._C._are_functorch_transforms_active()
        or _has_any_global_hook()
        or any(
            getattr(module.forward, "__func__", None) not in _KNOWN
            or module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or (isinstance(module, Affine) and module.beta is None)
            or (isinstance(module, FeedForward) and isinstance(module.activation, nn.Module))
            for module in modules
        )
    )


def keep_mask(x: Tensor, p: float) -> tuple[Tensor, float]:
    """What dropout keeps: a mask of 0 and 1, shaped like ``x``, and the share that is kept.

    On a CPU, PyTorch draws a random number of 64 bits for each element; here four elements share
    it. Their probability is then ``p`` rounded to 16 bits, and so is the share.

    Args:
        p: the probability of 0, between 0 and 1.
    """
    if x.device.type != "cpu":
        return torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p).view(torch.uint8), 1 - p
    dropped = min(round(p * 2**16), 2**16 - 1)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: x.numel()] >= dropped - 2**15
    return kept.view(torch.uint8).view(x.shape), 1 - dropped / 2**16


def _without_autocast(backward: Callable[..., _Gradients]) -> Callable[..., _Gradients]:
    """A backward pass chooses the types of its products by itself."""

    @once_differentiable
    def wrapped(ctx: Any, grad: Tensor) -> _Gradients:
        with torch.autocast(grad.device.type, enabled=False):
            return backward(ctx, grad)

    return cast("Callable[..., _Gradients]", wrapped)


def _affine_gradients(
    needed: Sequence[bool], x: Tensor, alpha: Tensor, grad: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of x, alpha and beta, of which some are needed, from that of alpha x + beta."""
    grad = grad.to(torch.promote_types(x.dtype, alpha.dtype))
    return (
        grad * alpha if needed[0] else None,
        (grad * x).sum(0) if needed[1] else None,
        grad.sum(0) if needed[2] else None,
    )


class _AffineLinear(torch.autograd.Function):
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


class _ActivatedLinear(torch.autograd.Function):
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


class _AffineMixing(torch.autograd.Function):
    """alpha' (A (alpha x + beta) + b) + beta' over the positions of a layout; (tokens, dim) both.

    There are zeros at pads in front of A.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alpha: Tensor,
        beta: Tensor,
        weight: Tensor,
        bias: Tensor,
        post_alpha: Tensor,
        post_beta: Tensor,
        layout: Layout,
        causal: bool,
    ) -> Tensor:
        mixed = mix(weight, bias, layout.pad(torch.addcmul(beta, x, alpha)), causal)
        ctx.save_for_backward(x, alpha, beta, weight, bias, post_alpha)
        ctx.layout, ctx.causal, ctx.dtype = layout, causal, mixed.dtype
        return torch.addcmul(post_beta, layout.pack(mixed), post_alpha)

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        x, alpha, beta, weight, bias, post_alpha = ctx.saved_tensors
        layout, causal, length = ctx.layout, ctx.causal, ctx.layout.length
        needed = ctx.needs_input_grad
        affine = torch.addcmul(beta, x, alpha).to(ctx.dtype)
        of_affine: _Gradients = (None, None, None)
        of_weight = of_bias = of_post_alpha = None
        of_post_beta = grad.sum(0) if needed[6] else None
        padded = layout.pad(grad.to(ctx.dtype))
        per_position = padded.sum(1)  # (length, dim)
        if needed[4]:
            of_bias = bias.new_zeros(len(bias))
            of_bias[:length] = (per_position * post_alpha).sum(1)
        if any(needed[:3]) or needed[5]:
            mixed = layout.pack(_transposed(weight.to(ctx.dtype), padded, causal))
            if needed[5]:
                of_post_alpha = (mixed * affine).sum(0)
                of_post_alpha += (per_position * bias[:length].unsqueeze(1)).sum(0)
            of_affine = _affine_gradients(needed, x, alpha, mixed * post_alpha)
        if needed[3]:
            of_weight = _outer(
                weight, padded * post_alpha.to(ctx.dtype), layout.pad(affine), causal
            )
        return *of_affine, of_weight, of_bias, of_post_alpha, of_post_beta, None, None


def _transposed(weight: Tensor, grad: Tensor, causal: bool) -> Tensor:
    """A^T g, as A x of :func:`mix`; (length, batch, dim) both."""
    length = len(grad)
    flat = grad.view(length, -1)
    parts = []
    for rows in blocks(length, causal):
        part = diagonal_block(weight, rows, causal).t() @ flat[rows]
        if rows.stop < length:
            later = slice(rows.stop, length)
            part.addmm_(weight[later, rows].t(), flat[later])
        parts.append(part)
    product = parts[0] if len(parts) == 1 else torch.cat(parts)
    return product.view_as(grad)


def _outer(weight: Tensor, grad: Tensor, x: Tensor, causal: bool) -> Tensor:
    """The gradient of A, g x^T in the shape of ``weight``; (length, batch, dim) both."""
    length = len(grad)
    flat, of_output = x.view(length, -1), grad.view(length, -1)
    of_weight = torch.zeros_like(weight, dtype=grad.dtype)
    for rows in blocks(length, causal):
        seen = slice(0, rows.stop)
        of_weight[rows, seen] = of_output[rows] @ flat[seen].t()
        if causal:
            of_weight[rows, rows].tril_()
    return of_weight


class _DroppedAddition(torch.autograd.Function):
    """x + m y / share, where m is a mask of which that share is 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, kept: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.share = share
        return torch.add(x, y * kept, alpha=1 / share)

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        (kept,) = ctx.saved_tensors
        of_y = (grad * kept).mul_(1 / ctx.share) if ctx.needs_input_grad[1] else None
        return grad, of_y, None, None
