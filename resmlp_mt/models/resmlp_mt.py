"""The translation models and the criterions under their fairseq names.

Every preset is a dataclass and a subclass of the model. ``fairseq-hydra-train`` ignores presets
made by functions (``register_model_architecture``), and silently builds the base model.
"""

from fairseq.criterions import register_criterion
from fairseq.models import register_model

from resmlp_mt.fairseq_plugin import console, fairseq_fixes, text_input
from resmlp_mt.fairseq_plugin.checkpoints import allow_safe_globals
from resmlp_mt.fairseq_plugin.config import (
    ResMLP12LConfig,
    ResMLPConfig,
    ResMLPPlus12LConfig,
    ResMLPPlus62Config,
    ResMLPPlusConfig,
    ResMLPTinyConfig,
)
from resmlp_mt.fairseq_plugin.criterion import ChunkedConfig, ChunkedLabelSmoothedCrossEntropy
from resmlp_mt.fairseq_plugin.model import ResMLPModel as ResMLPModel
from resmlp_mt.fairseq_plugin.rdrop import RDropConfig, RDropLabelSmoothedCrossEntropy
from resmlp_mt.fairseq_plugin.wrapping import mend

console.quieten()
console.write_utf8()
fairseq_fixes.apply()
mend(console, text_input)
allow_safe_globals()

register_criterion("rdrop_label_smoothed_cross_entropy", dataclass=RDropConfig)(
    RDropLabelSmoothedCrossEntropy
)
register_criterion("chunked_label_smoothed_cross_entropy", dataclass=ChunkedConfig)(
    ChunkedLabelSmoothedCrossEntropy
)


@register_model("resmlp_mt_6l", dataclass=ResMLPConfig)
class ResMLP6L(ResMLPModel):
    """The paper's 6-layer model."""


@register_model("resmlp_mt_12l", dataclass=ResMLP12LConfig)
class ResMLP12L(ResMLPModel):
    """The paper's 12-layer model."""


@register_model("resmlp_mt_plus_6l", dataclass=ResMLPPlusConfig)
class ResMLPPlus6L(ResMLPModel):
    """6 + 6 layers that mix by distance, in heads of channels."""


@register_model("resmlp_mt_plus_12l", dataclass=ResMLPPlus12LConfig)
class ResMLPPlus12L(ResMLPModel):
    """The same with 12 + 12 layers."""


@register_model("resmlp_mt_plus_6_2", dataclass=ResMLPPlus62Config)
class ResMLPPlus62(ResMLPModel):
    """The same with 6 + 2 layers, for fast decoding."""


@register_model("resmlp_mt_tiny", dataclass=ResMLPTinyConfig)
class ResMLPTiny(ResMLPModel):
    """A model for demonstrations and tests."""
