"""The criterions under their fairseq names."""

from fairseq.criterions import register_criterion

from resmlp_mt.fairseq_plugin.criterion import (
    ChunkedConfig,
    ChunkedLabelSmoothedCrossEntropy,
)
from resmlp_mt.fairseq_plugin.rdrop import RDropConfig, RDropLabelSmoothedCrossEntropy

register_criterion("rdrop_label_smoothed_cross_entropy", dataclass=RDropConfig)(
    RDropLabelSmoothedCrossEntropy
)
register_criterion("chunked_label_smoothed_cross_entropy", dataclass=ChunkedConfig)(
    ChunkedLabelSmoothedCrossEntropy
)
