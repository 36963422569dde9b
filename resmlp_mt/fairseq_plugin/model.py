"""The translation model as fairseq calls it: its encoder, its decoder and its options."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from fairseq.models import FairseqEncoderDecoderModel, register_model
from fairseq.tasks import FairseqTask
from torch import Tensor, nn

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import pruning, stored_options
from resmlp_mt.fairseq_plugin.config import ResMLPConfig, model_config, validate
from resmlp_mt.fairseq_plugin.decoder import ResMLPDecoder
from resmlp_mt.fairseq_plugin.encoder import ResMLPEncoder
from resmlp_mt.fairseq_plugin.vectors import build_embedding
from resmlp_mt.layers import FeedForward
from resmlp_mt.model.attention import CrossAttention
from resmlp_mt.model.decoder import DecoderLayer
from resmlp_mt.model.encoder import EncoderLayer
from resmlp_mt.packed_linear import PackingLinear

FITTING = {
    "task": (
        *("translation", "translation_multi_simple_epoch", "dummy_mt"),
        *("denoising", "multilingual_denoising", "span_masked_lm"),  # of one language
    ),
    "criterion": (
        *("cross_entropy", "label_smoothed_cross_entropy", "composite_loss"),
        "label_smoothed_cross_entropy_with_alignment",
        "label_smoothed_cross_entropy_with_rdrop",
    ),
}
"""fairseq's tasks and criterions for models with an encoder and a decoder of text."""

USUAL = {
    "task": "--task translation, or for several languages --task translation_multi_simple_epoch",
    "criterion": "--criterion label_smoothed_cross_entropy",
}


def of_other_models(section: str) -> dict[type, str]:
    """fairseq's other tasks or criterions, and their names.

    Its examples, which users load by a plugin of their own, are not among them.
    """
    return {
        kind: name
        for name, kind in stored_options.registry(section).items()
        if name not in FITTING[section]
        and kind.__module__.startswith("fairseq.")
        and not kind.__module__.startswith("fairseq.examples.")
    }


def check_choice(section: str, kind: type | None) -> None:
    """Refuse a task or a criterion of fairseq for other kinds of models.

    A task of a user that is made of one is refused, too.

    Raises:
        UserError: saying which one to give.
    """
    others = of_other_models(section)
    bases = [kind] if section == "criterion" else getattr(kind, "__mro__", ())
    for base in bases:
        if base in others:
            raise UserError(
                f"--{section} {others[base]} is for models of another kind than a ResMLP: use "
                f"{USUAL[section]}."
            )


class ResMLPModel(FairseqEncoderDecoderModel):
    """The encoder-decoder of section 3.5 of the paper."""

    supports_align_args = True

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | Path,
        checkpoint_file: str | Path = "model.pt",
        data_name_or_path: str | Path = ".",
        **kwargs: Any,
    ) -> Any:
        """fairseq's hub interface; its paths may be of type ``Path``.

        Raises:
            UserError: if the model or the data is not a folder, an archive is not safe, or an
                option is unknown.
        """
        return super().from_pretrained(
            model_name_or_path, checkpoint_file, data_name_or_path, **kwargs
        )

    @classmethod
    def build_model(cls, cfg: ResMLPConfig, task: FairseqTask) -> Self:
        """Build a model for the task's dictionaries.

        Raises:
            UserError: if an option is out of range or does not fit another one or the task.
        """
        check_choice("task", type(task))
        pruning.count_kept(cfg)
        source, target = task.source_dictionary, task.target_dictionary
        validate(cfg, joined_dictionary=source == target)

        encoder_tokens = build_embedding(
            source, cfg.encoder_embed_dim, cfg.encoder_embed_path, "--encoder-embed-path"
        )
        if cfg.share_all_embeddings:
            decoder_tokens = encoder_tokens
        else:
            decoder_tokens = build_embedding(
                target, cfg.decoder_embed_dim, cfg.decoder_embed_path, "--decoder-embed-path"
            )
        config = model_config(cfg, len(source), len(target), source.pad())
        decoder = ResMLPDecoder(config, target, decoder_tokens)
        decoder.alignment_heads = cfg.alignment_heads
        if cfg.alignment_layer is not None:
            decoder.alignment_layer = cfg.alignment_layer
        model = cls(ResMLPEncoder(config, source, encoder_tokens), decoder)
        model.cfg = cfg
        return model

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None,
        prev_output_tokens: Tensor,
        return_all_hiddens: bool = True,
        features_only: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, list[Any]]]:
        """Predict every next token; the arguments are as in fairseq's Transformer.

        ``return_all_hiddens`` is unused: the output has none of the encoder's states, and always
        those of the decoder.
        """
        decoded: tuple[Tensor, dict[str, list[Any]]] = self.decoder(
            prev_output_tokens,
            self.encoder(src_tokens, src_lengths),
            features_only=features_only,
            alignment_layer=alignment_layer,
            alignment_heads=alignment_heads,
        )
        return decoded

    def load_state_dict(
        self,
        state_dict: dict[str, Tensor],
        strict: bool = True,
        model_cfg: Any = None,
        args: Any = None,
    ) -> Any:
        """Load the parameters of a checkpoint, without the layers that are not kept.

        Raises:
            UserError: if a layer to keep is missing.
        """
        if model_cfg is not None:
            state_dict = pruning.pruned(state_dict, model_cfg)
        return super().load_state_dict(state_dict, strict, model_cfg, args)

    def make_generation_fast_(self, **kwargs: Any) -> None:
        """Called once before translation; keeps the dropout that ``retain_dropout`` names."""
        super().make_generation_fast_(**kwargs)
        if kwargs.get("retain_dropout"):
            _retain(self, kwargs.get("retain_dropout_modules"))

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Called before fairseq's commands translate: linear layers may keep packed weights."""
        super().prepare_for_inference_(cfg)
        for name, module in list(self.named_modules()):
            if type(module) is nn.Linear:
                self.set_submodule(name, PackingLinear(module))

    def set_beam_size(self, beam_size: int) -> None:
        """Called by fairseq's generator: hypotheses of a sentence may share keys and values."""
        self.decoder.set_beam_size(beam_size)


Model = TypeVar("Model", bound=ResMLPModel)


def preset(name: str, **defaults: Any) -> Callable[[type[Model]], type[Model]]:
    """Registers a class as ``--arch name``.

    Args:
        defaults: options whose default values differ from those of the 6-layer model.
    """

    def register(kind: type[Model]) -> type[Model]:
        base = ResMLPConfig.__dataclass_fields__
        changed = [
            (option, base[option].type, field(default=value, metadata=base[option].metadata))
            for option, value in defaults.items()
        ]
        config = make_dataclass(f"{kind.__name__}Config", changed, bases=(ResMLPConfig,))
        config.__doc__, config.__module__ = kind.__doc__, kind.__module__
        setattr(sys.modules[kind.__module__], config.__name__, config)  # where pickle looks for it
        register_model(name, dataclass=config)(kind)
        return kind

    return register


# The Transformer's modules with dropout in the same places have these names.
TRANSFORMER_NAMES = {
    "ResMLPEncoder": "TransformerEncoder",
    "ResMLPDecoder": "TransformerDecoder",
    "EncoderLayer": "TransformerEncoderLayer",
    "DecoderLayer": "TransformerDecoderLayer",
    "CrossAttention": "MultiheadAttention",
}


def _retain(model: FairseqEncoderDecoderModel, names: str | Sequence[str] | None) -> None:
    """Keep dropout on while a model translates or scores (``--retain-dropout``).

    Args:
        names: names of modules, ours or the Transformer's, as a list or, from the command line,
            separated by commas; None for all.

    Raises:
        UserError: if the model has no module with a name.
    """
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    for name in names or ():
        if name not in {*TRANSFORMER_NAMES, *TRANSFORMER_NAMES.values()}:
            raise UserError(
                f"--retain-dropout-modules {name} is none of {', '.join(TRANSFORMER_NAMES)}."
            )
    for owner, module in dropping(model):
        if names is None or owner in names or TRANSFORMER_NAMES[owner] in names:
            module.training = True


def dropping(model: FairseqEncoderDecoderModel) -> Iterator[tuple[str, nn.Module]]:
    """All dropout modules, each with the name of the module that it belongs to."""
    yield "ResMLPEncoder", model.encoder.dropout
    yield "ResMLPDecoder", model.decoder.dropout
    for module in model.modules():
        if isinstance(module, CrossAttention):
            yield "CrossAttention", module
        elif isinstance(module, EncoderLayer | DecoderLayer):
            for inner in (module.dropout, module.ffn, module.ffn.activation_dropout):
                assert isinstance(inner, FeedForward | nn.Dropout)
                yield type(module).__name__, inner
