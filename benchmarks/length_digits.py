"""Tests models on sentences longer than those of their training, on a task of seconds.

    python -m benchmarks.length_digits [--seeds 1 2 3]

The task is to sort digits: the source is a line of random digits, the target the same digits in
order. Training lines have 1 to 15 digits, test lines 1-15, 16-20 and 21-30. The models differ only
in their mixing; fairseq's Transformer has the same width, depth and heads. Writes
length_digits.json and length_digits.md beside this file.
"""

import argparse
import json
import math
import statistics
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerModel, base_architecture
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.machine import describe, measured_on
from resmlp_mt.command_line import command
from resmlp_mt.files import write_text
from resmlp_mt.mixing import MixingConfig
from resmlp_mt.model.config import ModelConfig
from resmlp_mt.model.encoder_decoder import EncoderDecoder

HERE = Path(__file__).resolve().parent
EOS, FIRST, DIGITS, LONGEST = 2, 4, 10, 40
LENGTHS = ((1, 15), (16, 20), (21, 30))  # the first range is that of the training
UPDATES, WARMUP, SENTENCES, LEARNING_RATE = 500, 100, 32, 2e-3
DIM, HIDDEN, LAYERS, HEADS = 64, 128, 2, 4
MIXINGS = {
    "paper": MixingConfig(),
    "plus, no gate": MixingConfig(heads=HEADS, relative="alone", decay=True, values=True),
    "plus, no gate, no decay": MixingConfig(heads=HEADS, relative="alone", values=True),
    "plus": MixingConfig(heads=HEADS, relative="alone", decay=True, values=True, gate=True),
}


def resmlp(mixing: MixingConfig) -> EncoderDecoder:
    """A model of 2 + 2 layers."""
    return EncoderDecoder(
        ModelConfig(
            source_vocabulary=FIRST + DIGITS, target_vocabulary=FIRST + DIGITS,
            encoder_embed_dim=DIM, encoder_ffn_embed_dim=HIDDEN, encoder_layers=LAYERS,
            decoder_embed_dim=DIM, decoder_ffn_embed_dim=HIDDEN, decoder_layers=LAYERS,
            decoder_attention_heads=HEADS, max_source_positions=LONGEST,
            max_target_positions=LONGEST, share_all_embeddings=True, layer_scale_init=1.0,
            encoder_mixing=mixing, decoder_mixing=mixing,
        )
    )  # fmt: skip


class Transformer(nn.Module):
    """fairseq's Transformer, with the same call as ours."""

    def __init__(self) -> None:
        super().__init__()
        words = Dictionary()
        for digit in range(DIGITS):
            words.add_symbol(str(digit))
        args = Namespace(
            encoder_embed_dim=DIM, encoder_ffn_embed_dim=HIDDEN, encoder_layers=LAYERS,
            encoder_attention_heads=HEADS, decoder_layers=LAYERS, decoder_attention_heads=HEADS,
            share_all_embeddings=True, dropout=0.0, max_source_positions=LONGEST,
            max_target_positions=LONGEST,
        )  # fmt: skip
        base_architecture(args)
        task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
        self.model = TransformerModel.build_model(args, task)

    def forward(self, source: Tensor, previous: Tensor) -> Tensor:
        lengths = torch.full((len(source),), source.size(1))
        scores: Tensor = self.model(source, lengths, previous)[0]
        return scores


def batch(lengths: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Source, decoder input and target, (batch, length) each, all of one length."""
    length = int(torch.randint(lengths[0], lengths[1] + 1, (1,), generator=generator))
    digits = torch.randint(FIRST, FIRST + DIGITS, (SENTENCES, length), generator=generator)
    end = torch.full((SENTENCES, 1), EOS)
    ordered = digits.sort(dim=1).values
    return torch.cat([digits, end], 1), torch.cat([end, ordered], 1), torch.cat([ordered, end], 1)


def perplexities(build: Callable[[], nn.Module], seed: int) -> list[float]:
    """Train a model and test it at all lengths."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build().train()
    optimizer = torch.optim.Adam(model.parameters())

    def loss(lengths: tuple[int, int]) -> Tensor:
        source, previous, target = batch(lengths, generator)
        return F.cross_entropy(model(source, previous).flatten(0, 1), target.flatten())

    for update in range(UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (update + 1) / WARMUP)
        optimizer.zero_grad()
        loss(LENGTHS[0]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return [
            math.exp(statistics.mean(loss(lengths).item() for _ in range(12)))
            for lengths in LENGTHS
        ]


@command
def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    builders: dict[str, Callable[[], nn.Module]] = {
        "fairseq's Transformer": Transformer,
        **{f"ResMLP, {name}": partial(resmlp, mixing) for name, mixing in MIXINGS.items()},
    }
    found: dict[str, list[list[float]]] = {}
    for name, build in builders.items():
        found[name] = [perplexities(build, seed) for seed in args.seeds]
        write(args.seeds, {each: found.get(each, []) for each in builders})
    print((HERE / "length_digits.md").read_text())


def write(seeds: list[int], found: dict[str, list[list[float]]]) -> None:
    """Write the report of all runs so far."""
    machine = describe(1)
    report = {"machine": machine, "seeds": seeds, "lengths": LENGTHS, "perplexities": found}
    write_text(HERE / "length_digits.json", json.dumps(report, indent=1) + "\n")
    heads = " | ".join(f"{low}-{high} digits" for low, high in LENGTHS)
    lines = [f"| model | {heads} |", "|-|" + "-:|" * len(LENGTHS)]
    for name, values in found.items():
        medians = [f"{statistics.median(each):.3g}" for each in zip(*values, strict=True)]
        lines.append(f"| {name} | " + " | ".join(medians or ["not run", "", ""]) + " |")
    write_text(
        HERE / "length_digits.md",
        "# Sentences longer than those of the training: sorting digits\n\n"
        f"Perplexity after {UPDATES} updates on lines of 1 to 15 digits; medians of "
        f"{len(seeds)} seeds. {LAYERS} + {LAYERS} layers, width {DIM}, {HEADS} heads.\n"
        f"{measured_on(machine)}\n"
        "Written by `benchmarks/length_digits.py`.\n\n" + "\n".join(lines) + "\n",
    )


if __name__ == "__main__":
    main()
