"""The residual branches of a layer, x + dropout(Aff(f(Aff(x)))).

In training, only what the backward pass cannot recompute is kept. For each token that is x,
B Aff(x) in the feed-forward layer, what the kernel of the attention needs, and one byte per channel
for dropout; not the outputs of affine maps, of the activation and of the attention's last linear
layer, nor padded inputs of A. With h = alpha x + beta, g the gradient of y and sums over tokens:

    y = W h + b                dW = g^T h       dh = g W    dalpha = sum dh x     dx = alpha dh
    y = alpha (W h + b) + beta dW = alpha g^T h             dalpha_i = sum_j (g^T h)_ij W_ij + b g
    y = alpha (A h + b) + beta                              dalpha = sum (A^T g) h + b g

The last two need no output of W or A.

A simpler version was measured: with autograd alone, and affine maps merged into weights as in
:func:`resmlp_mt.layers.merged_before`, a model of 2 + 2 layers of the base size keeps twice
the bytes for its gradients on 24 sentences, and a step takes 1.03 times the processor time.

The modules themselves are called if no gradients are needed or if the difference could be noticed:
with hooks, overridden forward methods or activations that are modules, in ``torch.func`` and in
``torch.compile``. They are also called with ``--activation-dropout``.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from resmlp_mt.graphs import is_recording
from resmlp_mt.layers import Affine, FeedForward
from resmlp_mt.mixing import TokenMixing
from resmlp_mt.mixing_products import blocks, by_head, from_heads, mix
from resmlp_mt.model.attention import CrossAttention
from resmlp_mt.padding import Layout

CPU_ROWS = 512
"""Tokens whose activated states exist at once: these stay in the cache, and need little memory."""

_Gradients = tuple[Tensor | None, ...]
_KNOWN = {
    kind.forward
    for kind in (Affine, CrossAttention, FeedForward, TokenMixing, nn.Dropout, nn.Linear)
}


def mixing_branch(
    x: Tensor,
    layout: Layout,
    pre: Affine | None,
    mixing: TokenMixing,
    post: Affine | None,
    dropout: nn.Dropout,
) -> Tensor:
    """x + dropout(post(mixing(pre(x)))) for tokens without pads; (tokens, dim) both.

    Affine maps that were merged into their neighbours are None.

    Raises:
        ValueError: if the layout has more positions than the matrix.
    """
    if not torch.is_grad_enabled() or pre is None or post is None:
        return add_branch(x, mixing(x if pre is None else pre(x), layout), post, dropout)
    gate, value, out = mixing.gate_proj, mixing.v_proj, mixing.out_proj
    projections = [linear for linear in (gate, value, out) if linear is not None]
    if not mixing.merges_affines or not _are_plain(pre, mixing, post, *projections):
        return add_branch(x, mixing(pre(x), layout), post, dropout)
    if not projections:
        mixing.check(layout.length)
        matrix, offset = mixing.matrix(layout.length), mixing.offset(layout.length)
        affine = pre.alpha, pre.beta, matrix, offset, post.alpha, post.beta
        return add_branch(x, _AffineMixing.apply(x, *affine, layout, mixing.causal), None, dropout)
    entries = pre(x) if value is None else _affine_linear(x, pre, value)
    mixed = layout.pack(mixing.mix(layout.pad(entries)))
    if gate is not None:
        mixed = mixed * torch.sigmoid(_affine_linear(x, pre, gate))
    if out is None:
        return add_branch(x, mixed, post, dropout)
    return add_branch(x, _linear_affine(mixed, out, post), None, dropout)


def attention_branch(
    x: Tensor,
    layout: Layout | None,
    pre: Affine | None,
    attention: CrossAttention,
    post: Affine | None,
    dropout: nn.Dropout,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """x + dropout(post(attention(pre(x)))), and the weights of the attention if asked for.

    The arguments are those of :class:`CrossAttention`; ``x`` is (tokens, dim) with a layout, else
    (batch, queries, dim), as the output.
    """
    read = keys, values, mask, layout, need_weights
    linears = attention.q_proj, attention.out_proj
    if (
        layout is None
        or not torch.is_grad_enabled()
        or pre is None
        or post is None
        or not _are_plain(pre, attention, *linears, post)
    ):
        y, weights = attention(x if pre is None else pre(x), *read)
    else:
        attended, weights = attention.attend(_affine_linear(x, pre, attention.q_proj), *read)
        # It is packed only afterwards: this is the tensor that the kernel keeps for its backward
        # pass anyway.
        y = _linear_affine(attended.flatten(0, 1), attention.out_proj, post)
        y, post = layout.pack(y.view(attended.shape)), None
    return add_branch(x, y, post, dropout), weights


def feed_forward_branch(
    x: Tensor, pre: Affine | None, ffn: FeedForward, post: Affine | None, dropout: nn.Dropout
) -> Tensor:
    """x + dropout(post(ffn(pre(x)))); (..., dim) both."""
    if not torch.is_grad_enabled() or pre is None or post is None or x.dim() != 2:
        return add_branch(x, ffn(x if pre is None else pre(x)), post, dropout)
    fc1, fc2, inner = ffn.fc1, ffn.fc2, ffn.activation_dropout
    if not _are_plain(pre, ffn, fc1, inner, fc2, post):
        return add_branch(x, ffn(pre(x)), post, dropout)
    hidden = _affine_linear(x, pre, fc1)
    if inner.training and inner.p:
        return add_branch(x, fc2(inner(ffn.activation(hidden))), post, dropout)
    return add_branch(x, _linear_affine(hidden, fc2, post, ffn.activation), None, dropout)


def _affine_linear(x: Tensor, affine: Affine, linear: nn.Linear) -> Tensor:
    """linear(affine(x))."""
    y: Tensor = _AffineLinear.apply(x, affine.alpha, affine.beta, linear.weight, linear.bias)
    return y


def _linear_affine(
    x: Tensor,
    linear: nn.Linear,
    affine: Affine,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """affine(linear(activation(x)))."""
    y: Tensor = _ActivatedLinear.apply(
        x, linear.weight, linear.bias, affine.alpha, affine.beta, activation
    )
    return y


def add_branch(x: Tensor, y: Tensor, post: Affine | None, dropout: nn.Dropout) -> Tensor:
    """x + dropout(post(y)), which draws the same numbers with and without gradients.

    Shapes: (..., dim) all.
    """
    if post is not None:
        y = post(y)
    if not dropout.training:
        return x + y
    if not (0 < dropout.p < 1 and _are_plain(dropout)):
        return x + cast(Tensor, dropout(y))
    added: Tensor = _DroppedAddition.apply(x, y, *keep_mask(y, dropout.p))
    return added


def _rows(x: Tensor) -> int:
    """The rows of x, (tokens, hidden dim), that are worked on together."""
    return CPU_ROWS if x.device.type == "cpu" else len(x)


def _are_plain(*modules: nn.Module) -> bool:
    """Whether these modules do nothing beyond their equations, and only autograd is recording."""
    return not (
        is_recording()  # the compiler chooses what to keep
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
    """The mask of dropout, 1 where ``x`` is kept and else 0, and the share that is kept.

    On a CPU, PyTorch draws a random number of 64 bits for each element. Here four elements share
    one, so that the probability is ``p`` rounded to 16 bits, and so is the share.

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
    """alpha (W f(x) + b) + beta; (tokens, hidden dim) -> (tokens, dim).

    On a CPU f(x) exists for :data:`CPU_ROWS` tokens at a time.
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
        if activation is None:
            product = F.linear(x, weight, bias)
        else:
            parts = [F.linear(activation(part), weight, bias) for part in x.split(_rows(x))]
            product = parts[0] if len(parts) == 1 else torch.cat(parts)
        ctx.save_for_backward(x, weight, bias, alpha)
        ctx.activation, ctx.dtype = activation, product.dtype
        return torch.addcmul(beta, product, alpha)

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        x, weight, bias, alpha = ctx.saved_tensors
        needed = ctx.needs_input_grad
        of_x = of_weight = of_bias = of_alpha = of_beta = None
        if any(needed[2:5]):
            of_beta = grad.sum(0)
            of_bias = of_beta * alpha
        before_scaling = grad.new_zeros(weight.shape, dtype=ctx.dtype)
        if needed[0]:
            of_x = torch.empty_like(x)
        # sums of rounded parts would be less precise than one product
        whole = ctx.activation is None or torch.finfo(ctx.dtype).bits < 32
        rows = len(x) if whole else _rows(x)
        for start in range(0, len(x), max(rows, 1)):
            part, of_part = x[start : start + rows].detach(), grad[start : start + rows]
            with torch.enable_grad():
                part.requires_grad_()
                activated = part if ctx.activation is None else ctx.activation(part)
            if needed[1] or needed[3]:
                before_scaling.addmm_(of_part.to(ctx.dtype).t(), activated.detach().to(ctx.dtype))
            if of_x is not None:
                of_activated = (of_part * alpha).to(ctx.dtype) @ weight.to(ctx.dtype)
                (of_x[start : start + rows],) = torch.autograd.grad(
                    activated, part, of_activated.to(activated.dtype)
                )
        if needed[3]:
            of_alpha = (before_scaling * weight).sum(1) + of_beta * bias
        if needed[1]:
            of_weight = before_scaling.mul_(alpha.unsqueeze(1))
        return of_x, of_weight, of_bias, of_alpha, of_beta, None


class _AffineMixing(torch.autograd.Function):
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


class _DroppedAddition(torch.autograd.Function):
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
