"""Measures settings of the memory allocator in training on a CPU: time and page faults.

    python -m benchmarks.allocator --threads 2 --rounds 3

One update of the 6-layer model at its full size, with each setting in a process of its own; the
processes take turns. Writes allocator.json and allocator.md beside this file.
"""

import argparse
import ctypes.util
import datetime
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.lengths import default_lengths
from benchmarks.speed.machine import describe
from benchmarks.speed.timing import spread
from benchmarks.speed.training_rows import Training, batches
from benchmarks.speed.translation_models import BASE
from resmlp_mt.command_line import command
from resmlp_mt.files import write_text

HERE = Path(__file__).resolve().parent
# keep freed memory up to 2 GiB, and serve blocks below 32 MiB, the largest limit, from the heap
KEEP = "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=2147483648"
SETTINGS: dict[str, dict[str, str]] = {
    "system's defaults": {},
    "pages kept": {"GLIBC_TUNABLES": KEEP},
    "large pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "pages kept, large pages": {"GLIBC_TUNABLES": f"{KEEP}:glibc.malloc.hugetlb=1"},
    "PyTorch's large pages": {"THP_MEM_ALLOC_ENABLE": "1"},
}
for library in ("jemalloc", "tcmalloc_minimal"):
    if found := ctypes.util.find_library(library):
        SETTINGS[library] = {"LD_PRELOAD": found}


def measure(threads: int, max_tokens: int) -> dict[str, float]:
    """Make two updates; returns seconds, seconds in the system and page faults of the second."""
    torch.set_num_threads(threads)
    data = batches(default_lengths(), BASE, max_tokens, count=1, device="cpu", seed=1)
    training = Training("resmlp", BASE, device="cpu", bf16=False, seed=1)
    training.step(data[0])
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    training.step(data[0])
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": time.perf_counter() - start,
        "system_seconds": after.ru_stime - before.ru_stime,
        "page_faults": after.ru_minflt - before.ru_minflt,
    }


def table(samples: dict[str, list[dict[str, float]]]) -> str:
    """Medians of every setting."""
    lines = ["| setting | s / update | in the system, s | page faults |", "|-|-|-|-|"]
    for name, rounds in samples.items():
        values = {key: spread([r[key] for r in rounds]) for key in rounds[0]}
        seconds = values["seconds"]
        lines.append(
            f"| {name} | {seconds.median:.2f} [{seconds.low:.2f}, {seconds.high:.2f}] | "
            f"{values['system_seconds'].median:.2f} | {values['page_faults'].median:,.0f} |"
        )
    return "\n".join(lines)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=1024, help="tokens in a batch")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(measure(args.threads, args.max_tokens)))
        return
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    command = [
        sys.executable, __file__, "--once", "--threads", str(args.threads),
        "--max-tokens", str(args.max_tokens),
    ]  # fmt: skip
    for _ in range(args.rounds):
        for name, setting in SETTINGS.items():
            output = subprocess.run(
                command, env={**os.environ, **setting}, stdout=subprocess.PIPE, check=True
            ).stdout
            samples[name].append(json.loads(output.splitlines()[-1]))
    machine: dict[str, Any] = describe(args.threads)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "max_tokens": args.max_tokens,
        "settings": SETTINGS,
        "samples": samples,
    }
    settings = "\n".join(
        f"* {name}: `{' '.join(f'{key}={value}' for key, value in setting.items())}`"
        for name, setting in SETTINGS.items()
        if setting
    )
    page = f"""# Settings of the memory allocator in training on a CPU

{machine["processor"]}, {args.threads} threads, torch {torch.__version__}; {result["date"]}. Written
by `benchmarks/allocator.py`. One update of the 6-layer model, batches of {args.max_tokens} tokens;
medians of {args.rounds} rounds, each in a process of its own, quartiles in brackets.

{table(samples)}

{settings}
"""
    write_text(HERE / "allocator.json", json.dumps(result, indent=1) + "\n")
    write_text(HERE / "allocator.md", page)
    print(page)


if __name__ == "__main__":
    main()
