"""What a measurement was made on and with."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "fairseq-fixed", "ctranslate2", "timm", "numpy")
ALLOCATOR = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_ARENA_MAX", "PYTORCH_ALLOC_CONF")


def describe(threads: int) -> dict[str, Any]:
    """Machine, versions, threads and the environment variables that set the allocator."""
    return {
        "processor": processor(),
        "cores": usable_cores(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "versions": {"python": platform.python_version(), **_versions()},
        "allocator": {name: os.environ[name] for name in ALLOCATOR if name in os.environ},
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_bf16() -> bool:
    """Whether the processor multiplies in bfloat16."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return bool(supported())


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
