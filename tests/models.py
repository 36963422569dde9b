"""Small models and batches for the tests of the translation model."""

from types import SimpleNamespace
from typing import Any

import sentencepiece
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from torch import Tensor

from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.vocabulary import Vocabulary
from resmlp_mt.fairseq_plugin.config import ResMLPConfig
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.models.resmlp_mt import ResMLPModel

PAD, EOS = 1, 2
PRESETS = [name for name, cls in ARCH_MODEL_REGISTRY.items() if issubclass(cls, ResMLPModel)]


def dictionary(size: int) -> Dictionary:
    """A fairseq dictionary of ``size`` entries, the four special ones included."""
    words = Dictionary()
    for index in range(size - len(words)):
        words.add_symbol(f"w{index}")
    return words


def task(size: int) -> SimpleNamespace:
    """What a model needs of a task: one dictionary for both languages."""
    words = dictionary(size)
    return SimpleNamespace(source_dictionary=words, target_dictionary=words)


def config(preset: str = "resmlp_mt_6l", **changes: object) -> ResMLPConfig:
    """A preset with 8 channels and a third of its layers (2 + 2 at first), without dropout."""
    cfg: ResMLPConfig = MODEL_DATACLASS_REGISTRY[preset]()
    defaults = {
        "encoder_embed_dim": 8,
        "encoder_ffn_embed_dim": 12,
        "encoder_layers": max(cfg.encoder_layers // 3, 1),
        "decoder_embed_dim": 8,
        "decoder_ffn_embed_dim": 12,
        "decoder_layers": max(cfg.decoder_layers // 3, 1),
        "decoder_attention_heads": 2,
        "dropout": 0.0,
        "max_source_positions": 12,
        "max_target_positions": 10,
    }
    for name, value in {**defaults, **changes}.items():
        assert hasattr(cfg, name), name
        setattr(cfg, name, value)
    return cfg


def build(seed: int = 0, vocabulary: int = 20, **changes: object) -> ResMLPModel:
    """A float64 model in evaluation mode, all parameters drawn from N(0, 0.3).

    Zero biases and unit scales would hide a forgotten term; the standard deviation keeps the
    activations of order one.
    """
    model = ResMLPModel.build_model(config(**changes), task(vocabulary)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * noise)
    return model


def translation_model(
    model: EncoderDecoder | None = None,
    words: Vocabulary | None = None,
    pieces: sentencepiece.SentencePieceProcessor | None = None,
    **more: Any,
) -> TranslationModel:
    """From English to German, with random parameters in float32 and the words w0, w1, ...

    A model or words may be given.
    """
    if model is None:
        model = fold(build(vocabulary=20 if words is None else len(words)).float())
    words = words or Vocabulary(dictionary(model.config.target_vocabulary).symbols)
    return TranslationModel(model, "en", "de", words, words, pieces, **more)


def sentences(lengths: list[int], vocabulary: int = 20, seed: int = 0) -> list[Tensor]:
    """Random sentences that end in EOS; (length,) each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.cat(
            [torch.randint(4, vocabulary, (length - 1,), generator=generator), torch.tensor([EOS])]
        )
        for length in lengths
    ]


def padded(rows: list[Tensor], *, left: bool = False, extra: int = 0) -> Tensor:
    """Stack sentences: (batch, longest + extra), padded on one side."""
    longest = max(len(row) for row in rows) + extra
    batch = torch.full((len(rows), longest), PAD)
    for row, tokens in zip(batch, rows, strict=True):
        if left:
            row[longest - len(tokens) :] = tokens
        else:
            row[: len(tokens)] = tokens
    return batch


def shifted(target: Tensor) -> Tensor:
    """Decoder input of one target sentence: EOS moved to the front; (length,)."""
    return torch.cat([target[-1:], target[:-1]])
