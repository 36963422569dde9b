"""Interleaved measurements, A B A B ..., so that a changing load affects all peers equally."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Run = Callable[[int], float]
"""Does the work of a round, given its number, and returns its amount (tokens, sentences, ...)."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of all samples, which are kept."""

    median: float
    low: float
    high: float
    samples: list[float]


def spread(samples: list[float]) -> Spread:
    """Median and quartiles; of a single sample, all three are the sample.

    Raises:
        ValueError: without samples.
    """
    if not samples:
        raise ValueError("nothing was measured")
    low, median, high = (
        statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    )
    return Spread(median, low, high, samples)


def ratio(ours: Spread, peer: Spread) -> Spread:
    """Ours divided by the peer's, round by round, because a round has the same load for both."""
    return spread([a / b for a, b in zip(ours.samples, peer.samples, strict=True)])


def interleaved(runs: Mapping[str, Run], rounds: int, *, device: str = "cpu") -> dict[str, Spread]:
    """Amounts per second of every run, measured in turn.

    Args:
        runs: by name. All are called once, untimed, before the first round.
        rounds: calls of each run that are timed.
        device: ``"cuda"`` times with events on the current stream.
    """
    clock = _cuda_seconds if device == "cuda" else _seconds
    for run in runs.values():
        run(0)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        for name, run in runs.items():
            amount, seconds = clock(run, index)
            speeds[name].append(amount / seconds)
    return {name: spread(samples) for name, samples in speeds.items()}


def _seconds(run: Run, index: int) -> tuple[float, float]:
    start = time.perf_counter()
    amount = run(index)
    return amount, time.perf_counter() - start


def _cuda_seconds(run: Run, index: int) -> tuple[float, float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    amount = run(index)
    end.record()
    torch.cuda.synchronize()
    return amount, start.elapsed_time(end) / 1000
