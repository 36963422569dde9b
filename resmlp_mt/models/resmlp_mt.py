"""The translation models under their fairseq names.

Every preset is a dataclass and a model subclass of its own: presets made by functions
(``register_model_architecture``) are ignored by ``fairseq-hydra-train``, which then builds the
base model without a word.
"""

from typing import Self

from fairseq import utils
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoderDecoderModel, register_model
from fairseq.models.transformer import Embedding
from fairseq.tasks import FairseqTask
from torch import nn

from resmlp_mt.translation import fairseq_fixes
from resmlp_mt.translation.checkpoints import allow_safe_globals
from resmlp_mt.translation.config import (
    ResMLP12LConfig,
    ResMLPConfig,
    ResMLPTinyConfig,
    validate,
)
from resmlp_mt.translation.decoder import ResMLPDecoder
from resmlp_mt.translation.encoder import ResMLPEncoder

fairseq_fixes.apply()
allow_safe_globals()


class ResMLPModel(FairseqEncoderDecoderModel):
    """The encoder-decoder of section 3.5 of the paper."""

    @classmethod
    def build_model(cls, cfg: ResMLPConfig, task: FairseqTask) -> Self:
        """Build a model for the task's dictionaries.

        Raises:
            OptionError: if an option is out of range or does not fit another one.
        """
        source, target = task.source_dictionary, task.target_dictionary
        validate(cfg, joined_dictionary=source == target)

        def embedding(dictionary: Dictionary, dim: int, path: str | None) -> nn.Embedding:
            embed_tokens: nn.Embedding = Embedding(len(dictionary), dim, dictionary.pad())
            if path is not None:
                utils.load_embedding(utils.parse_embedding(path), dictionary, embed_tokens)
            return embed_tokens

        encoder_tokens = embedding(source, cfg.encoder_embed_dim, cfg.encoder_embed_path)
        if cfg.share_all_embeddings:
            decoder_tokens = encoder_tokens
        else:
            decoder_tokens = embedding(target, cfg.decoder_embed_dim, cfg.decoder_embed_path)
        return cls(
            ResMLPEncoder(cfg, encoder_tokens, source.pad()),
            ResMLPDecoder(cfg, decoder_tokens, target.pad()),
        )


@register_model("resmlp_mt_6l", dataclass=ResMLPConfig)
class ResMLP6L(ResMLPModel):
    """The paper's 6-layer model."""


@register_model("resmlp_mt_12l", dataclass=ResMLP12LConfig)
class ResMLP12L(ResMLPModel):
    """The paper's 12-layer model."""


@register_model("resmlp_mt_tiny", dataclass=ResMLPTinyConfig)
class ResMLPTiny(ResMLPModel):
    """A model for demonstrations and tests."""
