"""The translation models and the criterions under their fairseq names.

Every preset is a subclass of the model with a dataclass of its own. ``fairseq-hydra-train`` ignores
presets made by functions (``register_model_architecture``), and silently builds the base model.
"""

from fairseq.criterions import register_criterion

from resmlp_mt.fairseq_plugin import console, fairseq_fixes, text_input
from resmlp_mt.fairseq_plugin.checkpoints import allow_safe_globals
from resmlp_mt.fairseq_plugin.criterion import ChunkedConfig, ChunkedLabelSmoothedCrossEntropy
from resmlp_mt.fairseq_plugin.model import ResMLPModel as ResMLPModel
from resmlp_mt.fairseq_plugin.model import preset
from resmlp_mt.fairseq_plugin.rdrop import RDropConfig, RDropLabelSmoothedCrossEntropy
from resmlp_mt.fairseq_plugin.wrapping import mend

console.quieten()
console.write_utf8()
fairseq_fixes.apply()
mend(console, text_input)
text_input.register_subwords()
allow_safe_globals()

register_criterion("rdrop_label_smoothed_cross_entropy", dataclass=RDropConfig)(
    RDropLabelSmoothedCrossEntropy
)
register_criterion("chunked_label_smoothed_cross_entropy", dataclass=ChunkedConfig)(
    ChunkedLabelSmoothedCrossEntropy
)


PLUS = {
    "mixing_heads": 8,
    "mixing_relative": "alone",
    "mixing_decay": "both",
    "mixing_values": "both",
    "mixing_gate": "both",
    "layer_scale_init": 1.0,
}
"""Mixing by distance alone, in 8 heads of channels, between value and output projections.

The weights shrink with the distance, and a gate multiplies the mixed states. LayerScale starts at
1, for Adam. See docs/quality.md.
"""

TWELVE = {"encoder_layers": 12, "decoder_layers": 12}


@preset("resmlp_mt_6l")
class ResMLP6L(ResMLPModel):
    """The paper's 6-layer model."""


@preset("resmlp_mt_12l", **TWELVE)
class ResMLP12L(ResMLPModel):
    """The paper's 12-layer model."""


@preset("resmlp_mt_plus_6l", **PLUS)
class ResMLPPlus6L(ResMLPModel):
    """6 + 6 layers that mix by distance, in heads of channels."""


@preset("resmlp_mt_plus_12l", **PLUS, **TWELVE)
class ResMLPPlus12L(ResMLPModel):
    """The same with 12 + 12 layers."""


@preset("resmlp_mt_plus_6_2", **PLUS, decoder_layers=2)
class ResMLPPlus62(ResMLPModel):
    """6 + 2 layers: the encoder reads a sentence once, the decoder works for every token."""


@preset(
    "resmlp_mt_tiny",
    encoder_embed_dim=128, encoder_ffn_embed_dim=256, encoder_layers=2,
    decoder_embed_dim=128, decoder_ffn_embed_dim=256, decoder_layers=2, decoder_attention_heads=4,
)  # fmt: skip
class ResMLPTiny(ResMLPModel):
    """A model for demonstrations and tests: minutes on a CPU."""
