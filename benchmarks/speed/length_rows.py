"""Cost against length: microseconds per token in training and in decoding, as a plot."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from benchmarks.speed.floors import Rates, operations
from benchmarks.speed.profiles import explained
from benchmarks.speed.report import Row
from benchmarks.speed.timing import Run, interleaved
from benchmarks.speed.training_rows import Training
from benchmarks.speed.translation_models import (
    Sizes,
    build_for_generation,
    dictionary,
    sentence_pairs,
)

Curves = dict[str, dict[int, Row]]
"""Rows by "training" or "decoding" and by length."""

NEVER_SLOWER = 1.0
NAMES = ("resmlp", "transformer")


def length(
    sizes: Sizes,
    rates: Rates,
    *,
    lengths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024),
    batch_tokens: int = 512,
    rounds: int = 2,
    seed: int = 1,
) -> Curves:
    """Tokens per second of sentences of one length, source and target alike.

    Training: forward and backward of about ``batch_tokens`` target tokens. Decoding: one sentence,
    one hypothesis, encoder included, step by step with fairseq's incremental state.
    """
    words = dictionary(sizes.vocabulary)
    trainings = {name: Training(name, sizes, device="cpu", bf16=False, seed=seed) for name in NAMES}
    models = {name: build_for_generation(name, sizes, seed, "cpu") for name in NAMES}
    curves: Curves = {"training": {}, "decoding": {}}
    for tokens in lengths:
        count = max(1, batch_tokens // tokens)
        pairs = sentence_pairs([(tokens, tokens)] * count, words, seed)
        batch = pairs.collater([pairs[index] for index in range(count)])
        for what, runs in (
            ("training", {name: _training(one, batch) for name, one in trainings.items()}),
            ("decoding", {name: _decoding(one, batch) for name, one in models.items()}),
        ):
            speeds = interleaved(runs, rounds)
            row = Row(
                measured=f"length {tokens}, {what}, CPU fp32",
                unit="tokens/s",
                ours=speeds["resmlp"],
                peer_name="fairseq transformer",
                peer=speeds["transformer"],
                goal=NEVER_SLOWER,
                floor=batch["ntokens"] / rates.seconds(trainings["resmlp"].operations(batch))
                if what == "training"
                else tokens / _decoding_floor(models["resmlp"], batch, sizes, rates),
            )
            curves[what][tokens] = explained(row, runs["resmlp"])
    return curves


def _training(training: Training, batch: dict[str, Any]) -> Run:
    def run(index: int) -> float:
        training.model.zero_grad()
        training.backward(batch)
        return float(batch["ntokens"])

    return run


def _decoding(model: Any, batch: dict[str, Any]) -> Run:
    inputs = batch["net_input"]
    source, lengths = inputs["src_tokens"][:1], inputs["src_lengths"][:1]
    target = inputs["prev_output_tokens"][:1]

    @torch.inference_mode()
    def run(index: int) -> float:
        encoder_out = model.encoder(source, src_lengths=lengths)
        state: dict[str, Any] = {}
        for end in range(1, target.size(1) + 1):
            model.decoder(target[:, :end], encoder_out=encoder_out, incremental_state=state)
        return float(target.size(1))

    return run


def _decoding_floor(model: Any, batch: dict[str, Any], sizes: Sizes, rates: Rates) -> float:
    """Seconds for one sentence: products of the encoder, and what each step of the decoder reads.

    These are weights, keys and values, and half the final cache of A's inputs.
    """
    source = batch["net_input"]["src_tokens"][:1]
    positions: int = source.size(1)
    weights: int = sum(
        module.weight.numel()
        for name, module in model.decoder.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith(("k_proj", "v_proj"))
    )
    cached = sizes.layers * sizes.embed_dim * (2 * positions + positions // 2)
    encoding = rates.seconds(operations(lambda: model.encoder(source)))
    return encoding + positions * rates.seconds(0, 4 * (weights + cached))


def plot(curves: Curves, path: Path) -> None:
    """Draw milliseconds per target token against the length."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axes, (what, rows) in zip(both, curves.items(), strict=True):
        for name, speeds in (
            ("ResMLP", [row.ours for row in rows.values()]),
            ("fairseq transformer", [row.peer for row in rows.values()]),
        ):
            axes.plot(list(rows), [1000 / speed.median for speed in speeds], "o-", label=name)
        axes.set_title(what)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(rows), [str(tokens) for tokens in rows])
        axes.set_xlabel("tokens in a sentence")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    both[0].set_ylabel("ms per target token")
    both[0].legend(frameon=False)
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)
