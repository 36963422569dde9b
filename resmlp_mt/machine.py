"""The machine that the program runs on: processor, cores, bfloat16."""

import os
import platform
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

MOST_THREADS = 1024
"""Most threads or processes that one may ask for: more fill the machine and speed nothing up."""


def processor() -> str:
    """The processor's name, where the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    found = (
        re.search(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8"))
        if cpuinfo.exists()
        else None
    )
    return found.group(1) if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(count: int) -> None:
    """Let every product of PyTorch, if it is loaded, use this many threads.

    Other threads that have computed before keep theirs.
    """
    if sys.modules.get("torch"):  # ONNX graphs do not need it
        import torch

        torch.set_num_threads(count)


def instructions() -> dict[str, Any]:
    """The processor's instructions by PyTorch's names, and whether it has them; maybe none."""
    import torch  # here, because commands that only print their options do not need it

    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return found


@cache
def multiplies_int8_tiles() -> bool:
    """Whether oneDNN may multiply matrices of int8 in tiles (AMX), which is fast and exact.

    Without tiles, or if ``ONEDNN_MAX_CPU_ISA`` rules them out, sums of two products may be cut off
    at 16 bits.
    """
    import torch

    if not instructions().get("amx_int8"):
        return False
    largest = torch.full((16, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.t()) == 64 * 127 * 127).all())


@cache
def adds_int8_in_32_bits() -> bool:
    """Whether one instruction (VNNI) multiplies int8 and adds four products in 32 bits."""
    found = instructions()
    return bool(found.get("avx512_vnni") or found.get("avx_vnni"))


def computes_in_bfloat16() -> bool:
    """Whether PyTorch has bfloat16 products for this processor."""
    import torch

    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return bool(supported())
