"""Label-smoothed cross-entropy that never holds the scores of a whole batch.

With a large vocabulary, the scores, (tokens, vocabulary), and their gradient take most of the
memory of training. Here they are computed and used a few rows at a time, and not at all for pads.
Loss and gradients equal those of fairseq's ``label_smoothed_cross_entropy``; with
``--rdrop-alpha``, those of :mod:`resmlp_mt.fairseq_plugin.rdrop`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import rdrop

ROWS = 512
"""Rows at a time: 62.5 MiB of scores with 32,000 words; fewer make the products slower on a CPU."""


def smoothed_cross_entropy(
    features: Tensor, weight: Tensor, target: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Sums over all rows of the label-smoothed loss and of the negative log-likelihood.

    The gradients are computed in the forward pass, while the scores are there. Only the loss has
    gradients. Scores are computed in the type of :func:`_type_of_products`, log-probabilities and
    sums in float32 at least, as fairseq does: half precision cannot hold the sum over a batch.

    Args:
        features: (rows, dim).
        weight: weight of the output projection, (vocabulary, dim).
        target: (rows,).
        epsilon: fairseq's ``--label-smoothing``.
    """
    dtype = _type_of_products(features)
    if not torch.is_grad_enabled():  # the function asks for requires_grad alone
        features, weight = features.detach(), weight.detach()
    with torch.autocast(features.device.type, enabled=False):
        loss, nll = _SmoothedCrossEntropy.apply(features, weight, target, epsilon, dtype)
    return loss, nll


def _type_of_products(features: Tensor) -> torch.dtype:
    """bfloat16 where the decoder's own projection would compute in it, else float32 at least.

    float16 cannot hold the sums over rows and words.
    """
    device, dtype = features.device.type, features.dtype
    if torch.is_autocast_enabled(device) and dtype == torch.float32:
        dtype = torch.get_autocast_dtype(device)
    return dtype if dtype == torch.bfloat16 else torch.promote_types(features.dtype, torch.float32)


class _SmoothedCrossEntropy(torch.autograd.Function):
    """fairseq's loss: with e = epsilon / (vocabulary - 1) and p the probabilities of the classes c,

        -(1 - epsilon - e) log p_t - e sum_c log p_c

    Its gradient for the score of class c is p_c - e, and 1 - epsilon - e less for the target t.
    What the constant -e adds to the gradients of features and weight needs no scores.

    Autograd keeps the log-probabilities of the whole batch; benchmarks/gradients.py measures it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        target: Tensor,
        epsilon: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        of_all = epsilon / (len(weight) - 1)
        of_target = 1 - epsilon - of_all
        features, weight = features.to(dtype), weight.to(dtype)
        full = torch.promote_types(dtype, torch.float32)
        nll, of_classes = features.new_zeros(2, dtype=full)
        of_features = of_weight = None
        if ctx.needs_input_grad[0]:
            of_features = torch.empty_like(features)
        if ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight, dtype=full)
        # Scores, log-probabilities and gradients have the same memory in turn: on a CPU, new memory
        # costs more time than the softmax. The products of bfloat16 need their own.
        size = min(ROWS, len(features)), len(weight)
        memory = features.new_empty(size, dtype=full)
        of_products = memory if dtype == full else features.new_empty(size)
        for start in range(0, max(len(features), 1), ROWS):
            rows = slice(start, start + ROWS)
            words = target[rows].unsqueeze(1)
            scores, product = memory[: len(words)], of_products[: len(words)]
            torch.mm(features[rows], weight.t(), out=product)
            if dtype != full:
                scores.copy_(product)
            if scores.is_cpu:  # nothing promises that other devices can do this in place
                log_probs = torch.log_softmax(scores, 1, out=scores)
            else:
                log_probs = scores.copy_(scores.log_softmax(1))
            nll = nll - log_probs.gather(1, words).sum()
            of_classes = of_classes - log_probs.sum()
            if of_features is not None or of_weight is not None:
                grad = log_probs.exp_()
                grad.scatter_add_(1, words, grad.new_full(words.shape, -of_target))
                if dtype != full:
                    grad = product.copy_(grad)
                if of_features is not None:
                    torch.mm(grad, weight, out=of_features[rows])
                if of_weight is not None:
                    if dtype == full:
                        of_weight.addmm_(grad.t(), features[rows], beta=int(start > 0))
                    else:  # which would round the sum for every part
                        part = grad.t() @ features[rows]
                        of_weight = of_weight.add_(part) if start else of_weight.copy_(part)
        if any(ctx.needs_input_grad):
            # by products with ones: a sum over so many rows takes as long as a softmax
            constants = [-of_all * (x.new_ones(1, len(x)) @ x).to(full) for x in (weight, features)]
            ctx.save_for_backward(of_features, of_weight, *constants)
        ctx.mark_non_differentiable(nll)
        return of_target * nll + of_all * of_classes, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_features, of_weight, *constants = ctx.saved_tensors
        gradients = (
            None if x is None else torch.addcmul(constant * grad, x, grad)
            for x, constant in zip((of_features, of_weight), constants, strict=True)
        )
        return *gradients, None, None, None


def chunked_divergence(features: Tensor, weight: Tensor) -> Tensor:
    """:func:`symmetric_divergence` of the first and the second half of the rows.

    Scores are computed for some rows at a time, and again for the gradients, in the types of
    :func:`smoothed_cross_entropy`.

    Args:
        features: (2 rows, dim).
        weight: weight of the output projection, (vocabulary, dim).
    """
    dtype = _type_of_products(features)
    full = torch.promote_types(dtype, torch.float32)
    features, weight = features.to(dtype), weight.to(full)  # whose gradients are added

    def part(one: Tensor, other: Tensor, weight: Tensor) -> Tensor:
        weight = weight.to(dtype)
        scores = (F.linear(half, weight).log_softmax(1, dtype=full) for half in (one, other))
        return rdrop.symmetric_divergence(*scores)

    total = features.new_zeros((), dtype=full)
    with torch.autocast(features.device.type, enabled=False):
        first, second = features.chunk(2)
        for one, other in zip(first.split(ROWS), second.split(ROWS), strict=True):
            total = total + checkpoint(part, one, other, weight, use_reentrant=False)
    return total


@dataclass
class ChunkedConfig(rdrop.RDropConfig):
    """Options; without R-Drop by default."""

    rdrop_alpha: float = field(default=0.0, metadata={"help": rdrop.HELP})


class ChunkedLabelSmoothedCrossEntropy(rdrop.RDropLabelSmoothedCrossEntropy):
    """fairseq's criterion, for decoders whose output layer is one matrix without a bias."""

    configuration = ChunkedConfig

    def check(self) -> None:
        super().check()
        if self.report_accuracy or self.ignore_prefix_size:
            raise UserError(
                "--report-accuracy and --ignore-prefix-size need "
                "--criterion label_smoothed_cross_entropy."
            )

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss, its number of tokens or sentences, and what is logged."""
        if not reduce:
            return super().forward(model, sample, reduce)
        net_input = {**sample["net_input"], "features_only": True}
        return super().forward(model, {**sample, "net_input": net_input})

    def compute_loss(
        self, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Loss and negative log-likelihood of all tokens except pads."""
        if not reduce:
            return super().compute_loss(model, net_output, sample, reduce)  # type: ignore[no-any-return]
        features, target = self._tokens(net_output, sample)
        return smoothed_cross_entropy(
            features, model.decoder.output_projection.weight, target, self.eps
        )

    def divergence(self, model: Any, net_output: Any, doubled: dict[str, Any]) -> Tensor:
        """The divergence of R-Drop, over all tokens except pads."""
        features, _ = self._tokens(net_output, doubled)
        return chunked_divergence(features, model.decoder.output_projection.weight)

    def _tokens(self, net_output: Any, sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Features, (rows, dim), and targets, (rows,), without pads."""
        target = sample["target"].flatten()
        rows = target.ne(self.padding_idx).nonzero().squeeze(1)
        return net_output[0].flatten(0, 1).index_select(0, rows), target[rows]
