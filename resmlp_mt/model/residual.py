"""The residual branches of a layer, x + dropout(Aff(f(Aff(x)))).

In training, only what the backward pass cannot recompute is kept. For each token that is x,
B Aff(x) in the feed-forward layer, what the kernel of the attention needs, and one byte per channel
for dropout; not the outputs of affine maps, of the activation and of the attention's last linear
layer, nor padded inputs of A (:mod:`resmlp_mt.model.gradients`). In batches with fewer tokens than
the linear layer after an affine map has rows, the output of this map is kept too.

With autograd alone, a layer keeps nearly twice the bytes for its gradients (a test compares them).

The modules themselves are called if no gradients are needed or if the difference could be noticed:
with hooks, overridden forward methods or activations that are modules, in ``torch.func`` and in
``torch.compile``. They are also called with ``--activation-dropout``.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from resmlp_mt.graphs import is_recording
from resmlp_mt.layers import Affine, FeedForward
from resmlp_mt.mixing import TokenMixing
from resmlp_mt.model.attention import CrossAttention, Memory
from resmlp_mt.model.gradients import ActivatedLinear, AffineMixing
from resmlp_mt.padding import Layout

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
        return add_branch(x, AffineMixing.apply(x, *affine, layout, mixing.causal), None, dropout)
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
    memory: Memory,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """x + dropout(post(attention(pre(x)))), and the weights of the attention if asked for.

    The arguments are as in :class:`CrossAttention`; ``x`` is (tokens, dim) with a layout, else
    (batch, queries, dim), as the output.
    """
    read = memory, layout, need_weights
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
    """linear(affine(x)), with the affine map applied to the smaller of x and the weight.

    The passes over numbers cost up to a fifth of an update on a CPU.
    """
    weight = linear.weight
    if len(x) < len(weight):
        return cast(Tensor, linear(affine(x)))
    assert affine.beta is not None  # it is plain
    return F.linear(x, weight * affine.alpha, weight @ affine.beta + linear.bias)


def _linear_affine(
    x: Tensor,
    linear: nn.Linear,
    affine: Affine,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """affine(linear(activation(x)))."""
    y: Tensor = ActivatedLinear.apply(
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
    if not (y.is_cpu and 0 < dropout.p < 1 and _are_plain(dropout)):
        return x + cast(Tensor, dropout(y))
    kept, share = keep_mask(y, dropout.p)
    return torch.addcmul(x, y, kept, value=1 / share)


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

    PyTorch draws a random number of 64 bits for each element. Here four elements share one, so that
    the probability is ``p`` rounded to 16 bits, and so is the share.

    Args:
        x: on a CPU.
        p: the probability of 0, between 0 and 1.
    """
    dropped = min(round(p * 2**16), 2**16 - 1)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: x.numel()] >= dropped - 2**15
    return kept.view(torch.uint8).view(x.shape), 1 - dropped / 2**16
