"""The criterion under its fairseq name."""

from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterionConfig,
)

from resmlp_mt.fairseq_plugin.criterion import ChunkedLabelSmoothedCrossEntropy

register_criterion(
    "chunked_label_smoothed_cross_entropy", dataclass=LabelSmoothedCrossEntropyCriterionConfig
)(ChunkedLabelSmoothedCrossEntropy)
