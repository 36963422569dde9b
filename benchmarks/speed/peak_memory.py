"""``python -m benchmarks.speed.peak_memory`` measures the peak memory of two updates, in bytes.

Reads the arguments as JSON from standard input; see :mod:`benchmarks.speed.training_rows`.
"""

import ctypes
import gc
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.training_rows import Training, batches
from benchmarks.speed.translation_models import Sizes


def peak(task: dict[str, Any]) -> int:
    """Bytes at the peak of two updates, less those in use before the model was built."""
    torch.set_num_threads(task["threads"])
    sizes, device, seed = Sizes(**task["sizes"]), task["device"], task["seed"]
    lengths = [(source, target) for source, target in task["lengths"]]
    # the first update, on a small batch, makes the optimizer's states
    data = [
        batches(lengths, sizes, max_tokens, count=1, device=device, seed=seed)[0]
        for max_tokens in (256, task["max_tokens"])
    ]
    gc.collect()
    if device == "cpu":  # memory freed by the batches would be used again, and not be counted
        ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    training = Training(task["name"], sizes, device=device, bf16=device == "cuda", seed=seed)
    for batch in data:
        training.step(batch)
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """A line of /proc/self/status, in bytes.

    ru_maxrss would start at the resident set of the process that started this one.
    """
    found = re.search(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return 1024 * int(found.group(1))


if __name__ == "__main__":
    print(peak(json.load(sys.stdin)))
