"""``python -m resmlp_mt.benchmark``: speed and memory beside the peers, in one table.

    python -m resmlp_mt.benchmark --output results
    python -m resmlp_mt.benchmark --rows training generation --threads 2 --repeats 5

All peers do the same work on the same inputs, in turn (A B A B ...), with random weights of one
size. Writes benchmark.md, benchmark.json with all samples and, for the row ``length``,
length.png. Groups that are not measured keep their results in these files, so that a long benchmark
can be run in parts. docs/benchmark.md explains the columns.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import lengths as length_distribution
from benchmarks.speed.floors import Rates, measure_rates
from benchmarks.speed.generation_rows import fairseq_generate, translate
from benchmarks.speed.image_rows import images
from benchmarks.speed.length_rows import Curves, length, plot
from benchmarks.speed.machine import describe, multiplies_bfloat16
from benchmarks.speed.options import GROUPS, parse_args
from benchmarks.speed.preset_rows import PRESETS, presets
from benchmarks.speed.report import (
    Row,
    Rows,
    Unmeasured,
    as_json,
    from_json,
    markdown,
    missed,
)
from benchmarks.speed.training_rows import training, training_memory
from benchmarks.speed.translation_models import BASE, QUICK
from resmlp_mt.command_line import command
from resmlp_mt.files import output_file

SEED = 1
PLOT = "length.png"
NOT_SUPPORTED = "not supported here"
NO_GPU = "not measured: no GPU"


def device_rates() -> dict[str, Rates]:
    """The rates behind the floors, by device."""
    rates = {"cpu": measure_rates("cpu", _dtypes(multiplies_bfloat16(), int8=True))}
    if torch.cuda.is_available():
        rates["cuda"] = measure_rates("cuda", _dtypes(True, int8=False))
    return rates


def measure(
    group: str,
    lengths: length_distribution.Lengths,
    rates: dict[str, Rates],
    *,
    repeats: int,
    threads: int,
    quick: bool,
) -> tuple[Rows, Curves]:
    """All rows of a group, and the data of its plot if it has one."""
    gpu, bf16 = torch.cuda.is_available(), multiplies_bfloat16()
    sizes = QUICK if quick else BASE
    batches_of_tokens = (256,) if quick else (1024, 4096)
    batches = {1: 2, 4: 4} if quick else {1: 4, 64: 64}
    image_batches = (1, 4) if quick else (1, 64)
    long = (16, 64) if quick else (16, 32, 64, 128, 256, 512, 1024)

    def on(device: str, half: bool) -> dict[str, Any]:
        return {"device": device, "bf16": half, "rounds": repeats, "seed": SEED}

    def train(device: str, half: bool) -> Rows:
        return [
            row
            for tokens in batches_of_tokens
            for row in training(
                lengths, sizes, rates[device], max_tokens=tokens, **on(device, half)
            )
        ]

    def memory(device: str) -> Rows:
        most = max(batches_of_tokens)
        return training_memory(lengths, sizes, device=device, max_tokens=most, seed=SEED)

    def picture(device: str, half: bool) -> Rows:
        return images(
            rates[device],
            img_size=32 if quick else 224,
            batch_sizes=image_batches,
            training_batch=image_batches[1] if quick else 16,
            **on(device, half),
        )

    def generate(device: str) -> Rows:
        return fairseq_generate(
            lengths, sizes, rates[device], device=device, sentences=4 if quick else 32,
            rounds=repeats, seed=SEED,
        )  # fmt: skip

    curves: Curves = {}

    def along_length() -> Rows:
        tokens = 64 if quick else 512
        rounds = min(repeats, 2)
        found = length(
            sizes, rates["cpu"], lengths=long, batch_tokens=tokens, rounds=rounds, seed=SEED
        )
        curves.update(found)
        return [row for rows in found.values() for row in rows.values()]

    def missing(reason: str, *names: str) -> Rows:
        return [Unmeasured(name, reason) for name in names]

    parts: dict[str, list[Callable[[], Rows]]] = {
        "training": [
            lambda: train("cpu", False),
            lambda: (
                train("cpu", True) if bf16 else missing(NOT_SUPPORTED, "training, CPU bf16")
            ),
            lambda: memory("cpu"),
            lambda: (
                train("cuda", True) + memory("cuda")
                if gpu
                else missing(NO_GPU, "training, CUDA bf16", "training, peak memory, CUDA")
            ),
        ],
        "generation": [
            lambda: generate("cpu"),
            lambda: (
                generate("cuda") if gpu else missing(NO_GPU, "fairseq-generate, beam 4, CUDA fp32")
            ),
        ],
        "translate": [
            lambda: translate(
                lengths, sizes, rates["cpu"], batch_sizes=batches, threads=threads,
                rounds=repeats, seed=SEED,
            )
        ],
        "presets": [
            lambda: presets(
                lengths, sizes, rates["cpu"], batch_sizes=batches, threads=threads,
                rounds=repeats, seed=SEED,
                layers=dict.fromkeys(PRESETS, (1, 1)) if quick else PRESETS,
            )
        ],
        "images": [
            lambda: picture("cpu", False),
            lambda: picture("cpu", True) if bf16 else missing(NOT_SUPPORTED, "images, CPU bf16"),
            lambda: picture("cuda", True) if gpu else missing(NO_GPU, "images, CUDA bf16"),
        ],
        "length": [along_length],
    }  # fmt: skip
    measured: Rows = []
    for part in parts[group]:
        found = part()
        print(markdown(found), file=sys.stderr, flush=True)
        measured += found
    return measured, curves


def _dtypes(bf16: bool, int8: bool) -> dict[str, torch.dtype]:
    dtypes = {"fp32": torch.float32}
    if bf16:
        dtypes["bf16"] = torch.bfloat16
    if int8:
        dtypes["int8"] = torch.int8
    return dtypes


def page(groups: dict[str, dict[str, Any]]) -> str:
    """benchmark.md."""
    return """# Benchmark

Medians of interleaved rounds, quartiles in brackets. "floor": ours at the measured rates.
"by operations": the peer's matrix operations divided by ours.
""" + "".join(section(name, groups[name]) for name in GROUPS if name in groups)


def section(name: str, facts: dict[str, Any]) -> str:
    """What was measured in a group, and how."""
    rows = from_json(facts["rows"])
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    settings = " ".join(f"{k}={v}" for k, v in facts["allocator"].items()) or "the system's"
    matrix = "; ".join(
        f"{device.upper()} "
        + ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in rates["matrix"].items())
        + f", copying {rates['bandwidth'] / 1e9:.1f} GB/s"
        for device, rates in facts["rates"].items()
    )
    counts = sorted({len(row.ours.samples) for row in rows if isinstance(row, Row)})
    rounds = f"{' and '.join(map(str, counts))} rounds"
    profiles = missed(rows)
    if profiles:
        profiles = f"\nWhere the time of ours goes in the rows that miss their goal:\n\n{profiles}"
    plotted = f"\n![milliseconds per token against length]({PLOT})\n" if facts["plot"] else ""
    return f"""
## {name}

{facts["date"]}; `{facts["command"]}`; {rounds}.
{facts["processor"]}, {facts["cores"]} cores, {facts["instructions"]}, \
{facts["gpu"] or "no GPU"}, {facts["system"]}; {facts["threads"]} threads; seed {facts["seed"]}.
{versions}. Allocator settings: {settings}.
Measured rates: {matrix}.
Sizes: {facts["sizes"]}; lengths: {facts["lengths"]}.

{markdown(rows)}{profiles}{plotted}"""


def earlier(path: Path) -> dict[str, dict[str, Any]]:
    """The groups of an earlier run; ends the command if the file is not of this command."""
    if not path.exists():
        return {}
    try:
        groups: dict[str, dict[str, Any]] = json.loads(path.read_text())
        if not groups.keys() <= set(GROUPS):
            raise KeyError
        page(groups)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sys.exit(f"--output {path} is not a result of this command: move it away.")
    return groups


def main() -> None:
    """Run the command."""
    run(parse_args())


@command
def run(args: argparse.Namespace) -> None:
    """Measure, and write the tables.

    Args:
        args: of :func:`benchmarks.speed.options.parse_args`.
    """
    lengths = length_distribution.default_lengths()
    if args.lengths_from is not None:
        try:
            lengths = length_distribution.read_lengths(args.lengths_from)
        except (OSError, ValueError) as error:
            sys.exit(f"--lengths-from {error}.")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"--output {args.output} cannot be made a folder: {error.strerror}.")
    logging.disable(logging.INFO)  # of the peers, as are the warnings
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(args.threads)
    groups = earlier(args.output / "benchmark.json")
    rates = device_rates()
    for group in args.rows:
        start = time.monotonic()
        rows, curves = measure(
            group, lengths, rates, repeats=args.repeats, threads=args.threads, quick=args.quick
        )
        groups[group] = {
            "command": " ".join(["python -m resmlp_mt.benchmark", *sys.argv[1:]]),
            "seconds": time.monotonic() - start,
            **describe(args.threads),
            "seed": SEED,
            "repeats": args.repeats,
            "lengths": str(args.lengths_from or length_distribution.SOURCE),
            "sizes": str(QUICK if args.quick else BASE),
            "rates": {
                device: {"matrix": found.matrix, "bandwidth": found.bandwidth}
                for device, found in rates.items()
            },
            "plot": bool(curves),
            "rows": as_json(rows),
        }
        save(args.output, groups, curves)
    print((args.output / "benchmark.md").read_text())


def save(folder: Path, groups: dict[str, dict[str, Any]], curves: Curves) -> None:
    """Write the results of all groups, and the plot if it was measured."""
    if curves:
        with output_file(folder / PLOT, "--output") as path:
            plot(curves, path)
    for name, text in (
        ("benchmark.json", json.dumps(groups, indent=1) + "\n"),
        ("benchmark.md", page(groups)),
    ):
        with output_file(folder / name, "--output") as path:
            path.write_text(text)


if __name__ == "__main__":
    main()
