"""Options of the translation models, under the names of fairseq's Transformer.

The options are one flat dataclass. Presets, in ``resmlp_mt.models``, have other default values.
Fields are ``typing.Optional``, and booleans default to False, because fairseq's command-line
generator understands nothing else.
"""

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Optional

from fairseq import utils
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from resmlp_mt.command_line import flag
from resmlp_mt.engine.inputs import check_number
from resmlp_mt.errors import UserError
from resmlp_mt.mixing import VARIANTS, MixingConfig
from resmlp_mt.model.config import ModelConfig
from resmlp_mt.option_types import FINITE

# Sides are not booleans: if a preset turned a boolean on, fairseq's flag for it would turn it off.
if TYPE_CHECKING:
    Activation = str
    Relative = str
    Sides = str
else:
    Activation = ChoiceEnum(utils.get_available_activation_fns())
    Relative = ChoiceEnum(list(VARIANTS))
    Sides = ChoiceEnum(["none", "encoder", "decoder", "both"])


def option(default: Any, text: str | None, **bounds: Any) -> Any:
    """A field with its help.

    Args:
        bounds: the ``least`` value, and a value that it must be ``below``; ``argparse_const``, the
            value of the flag without one.
    """
    return field(default=default, metadata={"help": text, **bounds})


@dataclass
class ResMLPConfig(FairseqDataclass):
    """The 6-layer model of the paper (section 3.5): dim 512, hidden 2048, LayerScale 0.2."""

    encoder_embed_dim: int = option(512, "encoder embedding dimension", least=1)
    encoder_ffn_embed_dim: int = option(
        2048, "encoder hidden dimension of the feed-forward sublayer", least=1
    )
    encoder_layers: int = option(6, "number of encoder layers", least=1)
    encoder_embed_path: Optional[str] = option(
        None, "path to pre-trained encoder embeddings (GloVe text format)"
    )
    decoder_embed_dim: int = option(512, "decoder embedding dimension", least=1)
    decoder_ffn_embed_dim: int = option(
        2048, "decoder hidden dimension of the feed-forward sublayer", least=1
    )
    decoder_layers: int = option(6, "number of decoder layers", least=1)
    decoder_attention_heads: int = option(8, "number of heads of the cross-attention", least=1)
    decoder_embed_path: Optional[str] = option(
        None, "path to pre-trained decoder embeddings (GloVe text format)"
    )
    activation_fn: Activation = option("gelu", "activation of the feed-forward sublayers")
    dropout: float = option(
        0.1, "dropout after the embeddings and every sublayer", least=0, below=1
    )
    attention_dropout: float = option(
        0.0, "dropout on the cross-attention weights", least=0, below=1
    )
    activation_dropout: float = option(
        0.0, "dropout after the activation of the feed-forward sublayers", least=0, below=1
    )
    layer_scale_init: float = option(0.2, "initial scale after every sublayer (LayerScale)")
    mixing_heads: int = option(
        1, "groups of neighbouring channels, each with a mixing matrix of its own"
    )
    encoder_mixing_heads: Optional[int] = option(None, "--mixing-heads of the encoder alone")
    decoder_mixing_heads: Optional[int] = option(None, "--mixing-heads of the decoder alone")
    mixing_relative: Relative = option(
        "none",
        "alone: weights that depend on the distance of two positions (a Toeplitz matrix); "
        "none: weights that depend on the positions, as in the paper",
    )
    encoder_mixing_relative: Optional[Relative] = option(
        None, "--mixing-relative of the encoder alone"
    )
    decoder_mixing_relative: Optional[Relative] = option(
        None, "--mixing-relative of the decoder alone"
    )
    mixing_decay: Sides = option(
        "none",
        "let relative weights shrink with the distance, at a learned rate: none, "
        "encoder, decoder or both (both without a value)",
        argparse_const="both",
    )
    mixing_values: Sides = option(
        "none",
        "add value and output projections around the mixing matrices: none, encoder, "
        "decoder or both (both without a value)",
        argparse_const="both",
    )
    mixing_gate: Sides = option(
        "none",
        "multiply the mixed states by sigma(G x): none, encoder, decoder or both (both "
        "without a value)",
        argparse_const="both",
    )
    checkpoint_activations: bool = option(
        False, "compute each layer again for its gradients: less memory, more time"
    )
    offload_activations: bool = option(
        False, "--checkpoint-activations, with the inputs kept in the CPU's memory"
    )
    encoder_layerdrop: float = option(
        0.0, "LayerDrop probability of the encoder's layers", least=0, below=1
    )
    decoder_layerdrop: float = option(
        0.0, "LayerDrop probability of the decoder's layers", least=0, below=1
    )
    encoder_layers_to_keep: Optional[str] = option(
        None, "which encoder layers of a checkpoint to *keep*, such as 0,2,4"
    )
    decoder_layers_to_keep: Optional[str] = option(
        None, "which decoder layers of a checkpoint to *keep*, such as 0,2,4"
    )
    alignment_layer: Optional[int] = option(
        None,
        "decoder layer, from 0, whose attention is the alignment, supervised by "
        "--criterion label_smoothed_cross_entropy_with_alignment (default: the last)",
    )
    alignment_heads: Optional[int] = option(
        None, "average the alignment over this many heads (default: all)"
    )
    share_all_embeddings: bool = option(
        False, "share encoder, decoder and output embeddings (one joined dictionary)"
    )
    share_decoder_input_output_embed: bool = option(
        False, "share decoder input and output embeddings"
    )
    max_source_positions: int = option(II("task.max_source_positions"), None, least=1)
    max_target_positions: int = option(II("task.max_target_positions"), None, least=1)


def model_config(
    cfg: ResMLPConfig, source_vocabulary: int, target_vocabulary: int, padding_idx: int
) -> ModelConfig:
    """The options as the configuration of the model in torch."""
    same = {
        field.name: getattr(cfg, field.name)
        for field in fields(ModelConfig)
        if hasattr(cfg, field.name)
    }
    return ModelConfig(
        **same
        | {
            "source_vocabulary": source_vocabulary,
            "target_vocabulary": target_vocabulary,
            "padding_idx": padding_idx,
            "activation_fn": activation(cfg.activation_fn),
            "encoder_mixing": mixing_config(cfg, "encoder"),
            "decoder_mixing": mixing_config(cfg, "decoder"),
        }
    )


def activation(name: Any) -> str:
    """The name in :data:`resmlp_mt.model.config.ACTIVATIONS` of a choice of ``--activation-fn``."""
    return str(name).replace("gelu_fast", "gelu_accurate")


def mixing_config(cfg: ResMLPConfig, side: str) -> MixingConfig:
    """The mixing of the encoder or the decoder; its own options win over those of both."""
    heads = getattr(cfg, f"{side}_mixing_heads")
    relative = getattr(cfg, f"{side}_mixing_relative")
    relative = str(cfg.mixing_relative if relative is None else relative)
    return MixingConfig(
        heads=cfg.mixing_heads if heads is None else heads,
        relative=relative,
        decay=str(cfg.mixing_decay) in (side, "both") and VARIANTS[relative].uses_distances,
        values=str(cfg.mixing_values) in (side, "both"),
        gate=str(cfg.mixing_gate) in (side, "both"),
    )


def validate(cfg: ResMLPConfig, *, joined_dictionary: bool) -> None:
    """Check the options before the model is built.

    Args:
        joined_dictionary: whether source and target use the same dictionary.

    Raises:
        UserError: naming the option, what was expected and what to do.
    """
    for entry in fields(ResMLPConfig):
        if "least" not in entry.metadata:
            continue
        least, below = entry.metadata["least"], entry.metadata.get("below", math.inf)
        value = getattr(cfg, entry.name)
        if not least <= value < below:
            bounds = f"at least {least}" + (f" and below {below}" if below < math.inf else "")
            raise UserError(f"{flag(entry.name)} must be {bounds}, but is {value}.")
    for name, most in (
        ("alignment_layer", cfg.decoder_layers - 1),
        ("alignment_heads", cfg.decoder_attention_heads),
    ):
        value, least = getattr(cfg, name), int(name == "alignment_heads")
        if value is not None and not least <= value <= most:
            raise UserError(f"{flag(name)} must be from {least} to {most}, but is {value}.")
    check_number("--layer-scale-init", cfg.layer_scale_init, FINITE)
    if cfg.decoder_embed_dim % cfg.decoder_attention_heads != 0:
        raise UserError(
            f"--decoder-attention-heads must divide --decoder-embed-dim, "
            f"but {cfg.decoder_embed_dim} is not a multiple of {cfg.decoder_attention_heads}."
        )
    for side in ("encoder", "decoder"):
        mixing, dim = mixing_config(cfg, side), getattr(cfg, f"{side}_embed_dim")
        if mixing.heads < 1 or dim % mixing.heads != 0:
            raise UserError(
                f"--mixing-heads must be at least 1 and divide --{side}-embed-dim, but is "
                f"{mixing.heads} with {dim} channels."
            )
    sides = ("encoder", "decoder")
    decays = [side for side in sides if str(cfg.mixing_decay) in (side, "both")]
    if decays and not any(mixing_config(cfg, side).decay for side in decays):
        raise UserError(
            "--mixing-decay, which the plus presets have, is for weights that depend on distances: "
            "add --mixing-relative alone, or --mixing-decay none."
        )
    if not cfg.share_all_embeddings:
        return
    if not joined_dictionary:
        raise UserError(
            "--share-all-embeddings needs one dictionary for both languages, but they differ: "
            "run fairseq-preprocess with --joined-dictionary, or drop the option."
        )
    if cfg.encoder_embed_dim != cfg.decoder_embed_dim:
        raise UserError(
            f"--share-all-embeddings needs --encoder-embed-dim equal to --decoder-embed-dim, "
            f"but they are {cfg.encoder_embed_dim} and {cfg.decoder_embed_dim}."
        )
    if cfg.decoder_embed_path not in (None, cfg.encoder_embed_path):
        raise UserError(
            "--share-all-embeddings takes its vectors from --encoder-embed-path: "
            "drop --decoder-embed-path or give the same file."
        )
