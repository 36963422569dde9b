"""R-Drop (Wu et al. 2021, arXiv:2106.14448): two dropout masks, one prediction.

Each sentence goes through the model twice. With the two distributions P1 and P2 of a token y,

    loss = -log P1(y) - log P2(y) + alpha / 2 (KL(P1 || P2) + KL(P2 || P1))

where the first two terms are label-smoothed. The divergence is summed over the vocabulary and all
tokens, and everything is divided by the number of tokens (or sentences) as without R-Drop.

fairseq's ``label_smoothed_cross_entropy_with_rdrop`` has the same loss in training. But it also
uses it in validation, where there is no dropout, and reports the sum of both log-likelihoods, so
its perplexities are squared. Here they can be compared with those of other criterions.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.logging import metrics
from torch import Tensor

from resmlp_mt.errors import UserError

HELP = "weight of the divergence between two passes with dropout (R-Drop); 0: one pass"


@dataclass
class RDropConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """Options; the default alpha is the paper's for translation."""

    rdrop_alpha: float = field(default=5.0, metadata={"help": HELP})


class RDropLabelSmoothedCrossEntropy(LabelSmoothedCrossEntropyCriterion):  # type: ignore[misc]
    """fairseq's criterion over two passes while training, for any encoder-decoder model."""

    configuration: type[RDropConfig] = RDropConfig

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
        rdrop_alpha: float | None = None,  # of the configuration
    ) -> None:
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        self.rdrop_alpha = self.configuration.rdrop_alpha if rdrop_alpha is None else rdrop_alpha
        self.check()

    def check(self) -> None:
        """Refuse options that are out of range.

        Raises:
            UserError: naming the option.
        """
        if not 0 <= self.eps < 1:
            raise UserError(f"--label-smoothing must be at least 0 and below 1, but is {self.eps}.")
        if not 0 <= self.rdrop_alpha < float("inf"):
            raise UserError(
                f"--rdrop-alpha must be a number of 0 or more, but is {self.rdrop_alpha}."
            )

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss, its number of tokens or sentences, and what is logged.

        The logged likelihood is the mean of both passes.
        """
        if not (self.rdrop_alpha and model.training and reduce):
            return super().forward(model, sample, reduce)  # type: ignore[no-any-return]
        doubled = twice(sample)
        net_output = model(**doubled["net_input"])
        loss, nll_loss = self.compute_loss(model, net_output, doubled)
        divergence = self.divergence(model, net_output, doubled)
        loss = loss + self.rdrop_alpha * divergence
        sentences = sample["target"].size(0)
        sample_size = sentences if self.sentence_avg else sample["ntokens"]
        logged = {
            "loss": loss.data,
            "nll_loss": nll_loss.data / 2,
            "rdrop_kl_loss": divergence.data,
            "ntokens": sample["ntokens"],
            "nsentences": sentences,
            "sample_size": sample_size,
        }
        if self.report_accuracy:
            correct, total = self.compute_accuracy(model, net_output, doubled)
            logged |= {"n_correct": correct.item(), "total": total.item()}
        return loss, sample_size, logged

    def divergence(self, model: Any, net_output: Any, doubled: dict[str, Any]) -> Tensor:
        """Half of KL(P1 || P2) + KL(P2 || P1), summed over all tokens except pads."""
        lprobs, target = self.get_lprobs_and_target(model, net_output, doubled)
        tokens = target.ne(self.padding_idx)
        return symmetric_divergence(*lprobs[tokens].chunk(2))

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Aggregate logging outputs from data parallel training; the divergence in bits."""
        super().reduce_metrics(logging_outputs)
        if any("rdrop_kl_loss" in log for log in logging_outputs):
            total = sum(log["rdrop_kl_loss"] for log in logging_outputs)
            tokens = sum(log["ntokens"] for log in logging_outputs)
            in_bits = torch.as_tensor(total / tokens).div(torch.tensor(2.0).log())
            metrics.log_scalar("rdrop_kl_loss", in_bits, tokens, round=3)


def symmetric_divergence(one: Tensor, other: Tensor) -> Tensor:
    """Half of KL(P1 || P2) + KL(P2 || P1), which is half of sum (p1 - p2) (log p1 - log p2).

    Args:
        one: log-probabilities, (rows, vocabulary).
        other: the same for the other pass.
    """
    return ((one.exp() - other.exp()) * (one - other)).sum() / 2


def twice(sample: dict[str, Any]) -> dict[str, Any]:
    """A batch followed by a copy of all its sentences."""

    def doubled(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) else value

    net_input = {name: doubled(value) for name, value in sample["net_input"].items()}
    return {**sample, "net_input": net_input, "target": doubled(sample["target"])}
