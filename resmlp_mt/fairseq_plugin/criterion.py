"""Label-smoothed cross-entropy that never holds the scores of a whole batch.

With a large vocabulary the scores, (tokens, vocabulary), and their gradient are most of the memory
of training. Here they are made and used up a few rows at a time, and not at all for pads. Loss and
gradients are those of fairseq's ``label_smoothed_cross_entropy``.
"""

from typing import Any

import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from torch import Tensor, nn
from torch.nn import functional as F

from resmlp_mt.errors import UserError

ROWS = 512
"""Rows at a time: 62.5 MiB of scores with 32,000 words; fewer make the products slower on a CPU."""


def smoothed_cross_entropy(
    features: Tensor, weight: Tensor, target: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Sums over all rows of the label-smoothed loss and of the negative log-likelihood.

    fairseq spreads epsilon over all other classes, which is to spread e = epsilon V / (V - 1) over
    all V. The smoothed loss is then linear in the scores w_c x beyond the log-likelihood:

        -(1 - e) log p_t - (e / V) sum_c log p_c = -log p_t + e (w_t - mean_c w_c) x

    so that PyTorch's chunked cross-entropy, which knows no smoothing, does all that is expensive.

    Scores and sums are formed in float32 at least, also under autocast, as fairseq forms its
    log-probabilities: half precision does not hold the sum over a batch.

    Args:
        features: (rows, dim).
        weight: of the output projection, (vocabulary, dim).
        target: (rows,).
        epsilon: of fairseq's ``--label-smoothing``.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    features, weight = features.to(dtype), weight.to(dtype)
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=ROWS, chunking_method=None)
    vocabulary = len(weight)
    spread = epsilon * vocabulary / (vocabulary - 1)
    with torch.autocast(features.device.type, enabled=False):
        nll: Tensor = F.linear_cross_entropy(
            features, weight, target, reduction="sum", options=options
        )
        ahead = (features * F.embedding(target, weight)).sum() - features.sum(0) @ weight.mean(0)
    return nll + spread * ahead, nll


class ChunkedLabelSmoothedCrossEntropy(LabelSmoothedCrossEntropyCriterion):  # type: ignore[misc]
    """fairseq's criterion, for decoders whose output layer is one matrix without a bias."""

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
    ) -> None:
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        if not hasattr(F, "linear_cross_entropy"):
            raise UserError(
                f"--criterion chunked_label_smoothed_cross_entropy needs PyTorch 2.13, but this is "
                f"{torch.__version__}: use label_smoothed_cross_entropy."
            )
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
            return super().forward(model, sample, reduce)  # type: ignore[no-any-return]
        net_input = {**sample["net_input"], "features_only": True}
        return super().forward(model, {**sample, "net_input": net_input})  # type: ignore[no-any-return]

    def compute_loss(
        self, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Loss and negative log-likelihood of all tokens that are no pads."""
        if not reduce:
            return super().compute_loss(model, net_output, sample, reduce)  # type: ignore[no-any-return]
        target = model.get_targets(sample, net_output).flatten()
        rows = target.ne(self.padding_idx).nonzero().squeeze(1)
        features = net_output[0].flatten(0, 1).index_select(0, rows)
        weight = model.decoder.output_projection.weight
        return smoothed_cross_entropy(features, weight, target[rows], self.eps)
