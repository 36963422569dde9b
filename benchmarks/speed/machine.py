"""What a measurement was made on and with."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Any

import torch

from resmlp_mt.machine import computes_in_bfloat16, instructions, processor, usable_cores

PACKAGES = ("torch", "fairseq-fixed", "ctranslate2", "timm", "numpy")
UNITS = ("avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Units for products of int8 and bfloat16, which decide which kernels are fast."""
ALLOCATOR = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_ARENA_MAX", "PYTORCH_ALLOC_CONF")


def describe(threads: int) -> dict[str, Any]:
    """Day, machine, versions, threads and the environment variables that set the allocator."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": usable_cores(),
        "instructions": " ".join(
            [torch.backends.cpu.get_cpu_capability(), *(u for u in UNITS if instructions().get(u))]
        ),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "versions": {"python": platform.python_version(), **_versions()},
        "allocator": {name: os.environ[name] for name in ALLOCATOR if name in os.environ},
    }


def measured_on(machine: Mapping[str, Any]) -> str:
    """A sentence with what :func:`describe` found, for a page."""
    versions = ", ".join(map(" ".join, machine["versions"].items()))
    return (
        f"Measured {machine['date']} on {machine['processor']} ({machine['instructions']}), "
        f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}; {versions}."
    )


def multiplies_bfloat16() -> bool:
    """Whether bfloat16 can be faster than float32.

    With AVX-512 alone, PyTorch computes in bfloat16, but more slowly than in float32.
    """
    found = instructions()
    has_units = found.get("avx512_bf16") or found.get("amx_bf16")
    return computes_in_bfloat16() and bool(has_units or found.get("architecture") != "x86_64")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
