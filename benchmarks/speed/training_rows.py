"""Training: target tokens per second, and peak memory."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.optim.adam import Adam

from benchmarks.speed.floors import Rates, operations
from benchmarks.speed.lengths import Lengths, draw_smoothly
from benchmarks.speed.profiles import explained
from benchmarks.speed.report import Row, Rows, Unmeasured
from benchmarks.speed.timing import Run, Spread, interleaved, spread
from benchmarks.speed.translation_models import (
    Sizes,
    build,
    dictionary,
    sentence_pairs,
    to_device,
    training_batches,
)
from resmlp_mt.fairseq_plugin.criterion import ChunkedLabelSmoothedCrossEntropy

TRAINING_GOAL = 1.26
MEMORY_GOAL = 0.75
CORPUS = 20_000
"""Pairs that batches are formed from: with few, lengths would differ and leave many pads."""
CHUNKED = "_chunked"
PEERS = {
    "transformer": "fairseq transformer",
    "torch": "nn.Transformer",
    f"transformer{CHUNKED}": "fairseq transformer, chunked criterion",
}
# Our models, their criterion, and the peer with the same criterion, which has the goal.
LIKE_FOR_LIKE = {
    "resmlp": ("fairseq's criterion", "transformer"),
    f"resmlp{CHUNKED}": ("chunked criterion", f"transformer{CHUNKED}"),
}


class Training:
    """One model in training, with its optimizer, as in fairseq-train.

    Args:
        name: name of the model; with the suffix ``_chunked``, it is trained with our criterion,
            which computes the same as fairseq's.
    """

    def __init__(self, name: str, sizes: Sizes, *, device: str, bf16: bool, seed: int) -> None:
        chunked = name.endswith(CHUNKED)
        self.model = build(name.removesuffix(CHUNKED), sizes, seed).to(device).train()
        task = SimpleNamespace(target_dictionary=dictionary(sizes.vocabulary))
        criterion = (
            ChunkedLabelSmoothedCrossEntropy if chunked else LabelSmoothedCrossEntropyCriterion
        )
        self.criterion = criterion(task, False, 0.1)
        self.optimizer = Adam(self.model.parameters(), lr=1e-4, betas=(0.9, 0.98))
        self.autocast: Callable[[], Any] = (
            partial(torch.autocast, device, dtype=torch.bfloat16)
            if bf16
            else contextlib.nullcontext
        )

    def backward(self, batch: dict[str, Any]) -> None:
        """Loss and gradients of one batch."""
        with self.autocast():
            loss, sample_size, _ = self.criterion(self.model, batch)
        (loss / sample_size).backward()

    def operations(self, batch: dict[str, Any]) -> int:
        """The operations of :meth:`backward`."""
        return operations(partial(self.backward, batch))

    def step(self, batch: dict[str, Any]) -> float:
        """One update; returns the number of target tokens."""
        self.optimizer.zero_grad()
        self.backward(batch)
        self.optimizer.step()
        return float(batch["ntokens"])


def batches(
    lengths: Lengths, sizes: Sizes, max_tokens: int, *, count: int, device: str, seed: int
) -> list[dict[str, Any]]:
    """Batches that all models are trained on."""
    words = dictionary(sizes.vocabulary)
    corpus = [
        (min(source, sizes.max_positions), min(target, sizes.max_positions))
        for source, target in draw_smoothly(lengths, CORPUS, seed)
    ]
    pairs = sentence_pairs(corpus, words, seed)
    return [to_device(b, device) for b in training_batches(pairs, max_tokens, count, seed)]


def training(
    lengths: Lengths,
    sizes: Sizes,
    rates: Rates,
    *,
    device: str = "cpu",
    bf16: bool = False,
    max_tokens: int = 1024,
    rounds: int = 5,
    seed: int = 1,
) -> Rows:
    """Target tokens per second of one update: forward, backward and Adam."""
    data = batches(lengths, sizes, max_tokens, count=rounds, device=device, seed=seed)
    trainings = {
        name: Training(name, sizes, device=device, bf16=bf16, seed=seed)
        for name in [*LIKE_FOR_LIKE, *PEERS]
    }
    runs = {name: _updating(one, data) for name, one in trainings.items()}
    speeds = interleaved(runs, rounds, device=device)
    work = {name: one.operations(data[0]) for name, one in trainings.items()}
    dtype = "bf16" if bf16 else "fp32"
    pads = share_of_pads(data)
    return [
        explained(
            Row(
                measured=f"training, {device.upper()} {dtype}",
                unit="target tokens/s",
                ours=speeds[name],
                peer_name=PEERS[peer],
                peer=speeds[peer],
                goal=TRAINING_GOAL if peer == LIKE_FOR_LIKE[name][1] else None,
                floor=data[0]["ntokens"] / rates.seconds(work[name], dtype=dtype),
                work_ratio=work[peer] / work[name],
                note=f"batches of {max_tokens} tokens, {pads:.0%} pads, {LIKE_FOR_LIKE[name][0]}",
            ),
            runs[name],
        )
        for name, peer in pairs()
    ]


def share_of_pads(data: list[dict[str, Any]]) -> float:
    """The share of pads among all positions of source and target."""
    sides = [
        batch["net_input"][name] for batch in data for name in ("src_tokens", "prev_output_tokens")
    ]
    all_positions = torch.cat([side.flatten() for side in sides])
    return float(all_positions.eq(dictionary(0).pad()).float().mean())


def pairs() -> list[tuple[str, str]]:
    """Ours and the peers beside it: fairseq's criterion is not beside a chunked peer."""
    return [
        (name, peer)
        for name in LIKE_FOR_LIKE
        for peer in PEERS
        if name.endswith(CHUNKED) or not peer.endswith(CHUNKED)
    ]


def _updating(training: Training, data: list[dict[str, Any]]) -> Run:
    return lambda index: training.step(data[index % len(data)])


def training_memory(
    lengths: Lengths, sizes: Sizes, *, device: str = "cpu", max_tokens: int = 4096, seed: int = 1
) -> Rows:
    """Peak memory of an update, each model in a process of its own.

    On the CPU the peak is that of the resident set (VmHWM) less what is resident before the model
    is built; on the GPU, PyTorch's peak of allocated memory. The floor is what weights, gradients
    and the optimizer's states take.
    """
    measured = f"training, peak memory, {device.upper()}"
    if device == "cpu" and not sys.platform.startswith("linux"):
        return [Unmeasured(measured, "needs Linux: /proc/self/status")]
    # weights, gradients and two states of Adam, four bytes each
    parameters = sum(p.numel() for p in build("resmlp", sizes, seed).parameters())
    pads = share_of_pads(batches(lengths, sizes, max_tokens, count=1, device="cpu", seed=seed))
    peaks: dict[str, Spread] = {}
    for name in ("resmlp", "transformer", f"resmlp{CHUNKED}", f"transformer{CHUNKED}"):
        task = {
            "name": name,
            "lengths": lengths,
            "sizes": asdict(sizes),
            "device": device,
            "max_tokens": max_tokens,
            "threads": torch.get_num_threads(),
            "seed": seed,
        }
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.speed.peak_memory"],
            input=json.dumps(task),
            stdout=subprocess.PIPE,
            encoding="utf-8",
            check=True,
        )
        peaks[name] = spread([float(done.stdout) / 2**20])
    return [
        Row(
            measured=measured,
            unit="MiB",
            ours=peaks[name],
            peer_name=PEERS[peer],
            peer=peaks[peer],
            goal=MEMORY_GOAL if peer == LIKE_FOR_LIKE[name][1] else None,
            less_is_better=True,
            floor=16 * parameters / 2**20,
            note=f"batches of {max_tokens} tokens, {pads:.0%} pads, {LIKE_FOR_LIKE[name][0]}",
        )
        for name, peer in pairs()
        if peer in peaks
    ]
