"""The translation models of the benchmark, all of one size, and their batches."""

import argparse
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary, LanguagePairDataset
from fairseq.dataclass.configs import GenerationConfig
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.models.transformer import TransformerModel, base_architecture
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.lengths import Lengths
from resmlp_mt.fairseq_plugin.config import ResMLPConfig
from resmlp_mt.models.resmlp_mt import ResMLPModel


@dataclass(frozen=True)
class Sizes:
    """The base size of the Transformer's and the ResMLP paper."""

    embed_dim: int = 512
    ffn_embed_dim: int = 2048
    layers: int = 6
    heads: int = 8
    vocabulary: int = 32000
    max_positions: int = 1024
    dropout: float = 0.1
    decoder_layers: int | None = None  # as many as the encoder has


BASE = Sizes()
QUICK = Sizes(32, 64, 1, 4, 200, 128)


def dictionary(size: int) -> Dictionary:
    """A dictionary of ``size`` entries, the four special ones included."""
    words = Dictionary()
    for index in range(size - len(words)):
        words.add_symbol(f"w{index}")
    return words


def build(name: str, sizes: Sizes, seed: int) -> Any:
    """A model with random weights: ``resmlp``, ``plus``, ``transformer`` (fairseq's), ``torch``."""
    torch.manual_seed(seed)
    words = dictionary(sizes.vocabulary)
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    if name == "torch":
        return TorchTransformer(sizes, words)
    options = {
        "encoder_layers": sizes.layers,
        "decoder_layers": sizes.decoder_layers or sizes.layers,
        "encoder_embed_dim": sizes.embed_dim,
        "decoder_embed_dim": sizes.embed_dim,
        "encoder_ffn_embed_dim": sizes.ffn_embed_dim,
        "decoder_ffn_embed_dim": sizes.ffn_embed_dim,
        "decoder_attention_heads": sizes.heads,
        "share_all_embeddings": True,
        "max_source_positions": sizes.max_positions,
        "max_target_positions": sizes.max_positions,
        "dropout": sizes.dropout,
    }
    if name in ("resmlp", "plus"):
        preset = MODEL_DATACLASS_REGISTRY["resmlp_mt_plus_6l"]
        cfg = preset() if name == "plus" else ResMLPConfig()
        for option, value in options.items():
            setattr(cfg, option, value)
        return ResMLPModel.build_model(cfg, task)
    # Pre-norm would not change the time. The rest is fairseq's default, which is its fastest here:
    # no activation checkpoints, no quantization noise, the fused attention of PyTorch.
    args = argparse.Namespace(**options, encoder_attention_heads=sizes.heads)
    base_architecture(args)
    return TransformerModel.build_model(args, task)


def build_for_generation(name: str, sizes: Sizes, seed: int, device: str) -> Any:
    """The same model as ``fairseq-generate`` prepares it, for example without attention weights."""
    model = build(name, sizes, seed).to(device).eval()
    model.prepare_for_inference_(SimpleNamespace(generation=GenerationConfig()))
    return model


class TorchTransformer(nn.Module):
    """PyTorch's own ``nn.Transformer`` with its fused attention, called as fairseq's models are."""

    def __init__(self, sizes: Sizes, words: Dictionary) -> None:
        super().__init__()
        dim = sizes.embed_dim
        self.pad = words.pad()
        self.embed_tokens = nn.Embedding(len(words), dim, self.pad)
        nn.init.normal_(self.embed_tokens.weight, std=dim**-0.5)
        self.positions = nn.Parameter(torch.zeros(sizes.max_positions, dim))
        self.transformer = nn.Transformer(
            dim, sizes.heads, sizes.layers, sizes.layers, sizes.ffn_embed_dim, sizes.dropout,
            batch_first=True,
        )  # fmt: skip

    def forward(self, src_tokens: Tensor, prev_output_tokens: Tensor, **_: object) -> tuple[Tensor]:
        """Scores before the softmax, (batch, length, vocabulary)."""
        length = prev_output_tokens.size(1)
        causal = nn.Transformer.generate_square_subsequent_mask(length, src_tokens.device).isinf()
        is_pad = src_tokens.eq(self.pad)
        hidden = self.transformer(
            self._embed(src_tokens),
            self._embed(prev_output_tokens),
            tgt_mask=causal,
            src_key_padding_mask=is_pad,
            memory_key_padding_mask=is_pad,
            tgt_is_causal=True,
        )
        return (F.linear(hidden, self.embed_tokens.weight),)

    def _embed(self, tokens: Tensor) -> Tensor:
        scaled: Tensor = self.embed_tokens(tokens) * self.positions.size(1) ** 0.5
        return scaled + self.positions[: tokens.size(1)]

    def get_normalized_probs(self, net_output: tuple[Tensor], log_probs: bool) -> Tensor:
        """As in fairseq."""
        assert log_probs
        return F.log_softmax(net_output[0], dim=-1, dtype=torch.float32)

    def get_targets(self, sample: dict[str, Any], net_output: object) -> Tensor:
        """As in fairseq."""
        target: Tensor = sample["target"]
        return target


def sentence_pairs(lengths: Lengths, words: Dictionary, seed: int) -> LanguagePairDataset:
    """Random sentences of the given lengths, as fairseq reads them."""
    generator = torch.Generator().manual_seed(seed)

    def sentence(length: int) -> Tensor:
        tokens = torch.randint(words.nspecial, len(words), (length,), generator=generator)
        tokens[-1] = words.eos()
        return tokens

    sources = [sentence(source) for source, _ in lengths]
    targets = [sentence(target) for _, target in lengths]
    return LanguagePairDataset(
        sources, [len(s) for s in sources], words, targets, [len(t) for t in targets], words,
        shuffle=True,
    )  # fmt: skip


def training_batches(
    pairs: LanguagePairDataset, max_tokens: int, count: int, seed: int
) -> list[dict[str, Any]]:
    """Some of the batches that ``fairseq-train --max-tokens`` would form."""
    with_seed = np.random.RandomState(seed)
    state = np.random.get_state()
    np.random.seed(seed)  # fairseq draws the order among equal lengths from the global one
    order = pairs.ordered_indices()
    np.random.set_state(state)
    batches = [batch for batch in pairs.batch_by_size(order, max_tokens=max_tokens) if len(batch)]
    # The batches with the longest and the shortest sentences are rarely full.
    fullest = max(_padded_tokens(pairs, batch) for batch in batches)
    full = [batch for batch in batches if _padded_tokens(pairs, batch) > 0.8 * fullest]
    chosen = with_seed.choice(len(full), count, replace=len(full) < count)
    return [pairs.collater([pairs[int(i)] for i in full[index]]) for index in chosen]


def _padded_tokens(pairs: LanguagePairDataset, batch: Any) -> int:
    longest: int = max(pairs.num_tokens(int(index)) for index in batch)
    return longest * len(batch)


def to_device(sample: Any, device: str) -> Any:
    """A batch with all its tensors on a device."""
    if isinstance(sample, Tensor):
        return sample.to(device)
    if isinstance(sample, dict):
        return {name: to_device(value, device) for name, value in sample.items()}
    return sample
