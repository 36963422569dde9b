"""The machine that the program runs on: processor, cores, bfloat16."""

import math
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

MOST_THREADS = 1024
"""Most threads or processes that one may ask for: more fill the machine and speed nothing up."""

NO_THREAD = "can't start new thread"
"""What Python says where the system starts none; the error has no type of its own."""

_unchanged: int | None = None
"""The threads of PyTorch before the first call of :func:`set_threads`."""


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
    """Cores that this process may run on, or fewer if its container has less processor time."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return math.ceil(min(cores, quota()))


def quota(groups: Path = Path("/sys/fs/cgroup")) -> float:
    """Seconds of processor time that a container may use in a second; infinite without a limit.

    Args:
        groups: where the control groups of Linux are, of version 2 or 1.
    """
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            words = [(groups / name).read_text(encoding="utf-8") for name in names]
            time, period = map(int, " ".join(words).split())
        except (OSError, ValueError):  # another version; "max" and -1 mean no limit
            continue
        if time > 0 and period > 0:
            return time / period
    return math.inf


def set_threads(count: int) -> None:
    """Let every product of PyTorch, if it is loaded, use this many threads.

    This holds for the calling thread, and for those that have not computed yet. Other threads keep
    theirs.
    """
    global _unchanged
    if sys.modules.get("torch"):  # ONNX graphs do not need it
        import torch

        _unchanged = _unchanged or torch.get_num_threads()
        torch.set_num_threads(count)


def current_threads() -> int | None:
    """The threads of a product of PyTorch in the calling thread; None if it is not loaded."""
    if not sys.modules.get("torch"):
        return None
    import torch

    return torch.get_num_threads()


@contextmanager
def threads_kept() -> Iterator[None]:
    """Put the threads of the calling thread, and of new ones, back at the end of the block."""
    before = current_threads()
    try:
        yield
    finally:
        # PyTorch may have been loaded in the block
        if before := before or _unchanged:
            set_threads(before)


@contextmanager
def as_usual() -> Iterator[None]:
    """In the block, what a program has set for its own models changes nothing.

    That is, its default device and its autocast.
    """
    import torch

    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


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
