"""Estimates the GPU hours of the WMT14 recipes by arithmetic; nothing is measured.

    python -m benchmarks.gpu_hours

Counts the floating-point operations of one training step of every recipe of configs/mt with
torch.utils.flop_counter (matrix products, forward and backward), on sentences of LENGTH pieces. The
operations of the whole training are divided by an assumed rate. Writes gpu_hours.json and
gpu_hours.md beside this file.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.models import ARCH_MODEL_REGISTRY
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import resmlp_mt.models  # noqa: F401  registers the models
from resmlp_mt.command_line import command
from resmlp_mt.files import write_text

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs/mt"
RECIPES = ("wmt14_en_de_6l", "wmt14_en_de_12l", "wmt14_en_fr_6l", "wmt14_en_fr_12l")

VOCABULARY = 32_000
TOKENS = 400_000  # target tokens per update, padding not counted: docs/recipes.md
LENGTH = 30  # pieces of a sentence; only mixing and attention depend on it

# The assumptions: NVIDIA's figures for the A100 (dense), the share of them that a training of this
# size sustains, and the efficiency of eight GPUs.
PEAK = {"float32": 19.5, "bfloat16": 312.0}  # TFLOP/s
UTILISATION = {"float32": 0.5, "bfloat16": 0.2}
SCALING = 0.9


def resolved(name: str) -> DictConfig:
    """The configuration that fairseq-hydra-train makes from a recipe."""
    GlobalHydra.instance().clear()
    hydra_init(name)
    with initialize_config_dir(str(CONFIGS), version_base="1.1"):  # fairseq relies on this version
        cfg = compose(name, overrides=["task.data=DATA/bin"])
    add_defaults(cfg)
    return cfg


def build(cfg: DictConfig, vocabulary: int = VOCABULARY) -> torch.nn.Module:
    """The model of a resolved recipe."""
    words = Dictionary()
    for index in range(vocabulary - len(words)):
        words.add_symbol(f"w{index}")
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    model: torch.nn.Module = ARCH_MODEL_REGISTRY[cfg.model._name].build_model(cfg.model, task)
    return model


def flops_per_token(model: torch.nn.Module, length: int = LENGTH) -> float:
    """Operations of a training step per target token, for pairs of ``length`` tokens each."""
    tokens = torch.full((2, length), 5)
    # The counter counts the plain products of attention, but not torch's fused kernel for CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits, _ = model(tokens, torch.tensor([length, length]), tokens)
        logits.float().logsumexp(-1).sum().backward()
    return float(counter.get_total_flops()) / tokens.numel()


def estimate(name: str) -> dict[str, Any]:
    """Parameters, operations and hours of one recipe."""
    cfg = resolved(name)
    model = build(cfg)
    flops = flops_per_token(model)
    updates = cfg.optimization.max_update
    total = flops * TOKENS * updates
    hours = {kind: total / (PEAK[kind] * 1e12 * UTILISATION[kind]) / 3600 for kind in PEAK}
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops_per_token": flops,
        "updates": updates,
        "flops": total,
        "hours": {kind: {"1": h, "8": h / (8 * SCALING)} for kind, h in hours.items()},
    }


def report(found: dict[str, Any]) -> str:
    """The estimates as Markdown."""
    assumed = found["assumed"]
    rates = " and ".join(
        f"{assumed['peak_tflops'][kind]:g} TFLOP/s in {kind}, of which "
        f"{assumed['utilisation'][kind]:.0%} are sustained"
        for kind in PEAK
    )
    lines = [
        "# GPU hours of the WMT14 recipes: an estimate",
        "",
        "Written by `python benchmarks/gpu_hours.py`; do not edit.",
        "",
        "**Nothing here was measured on a GPU;** [gpu.md](gpu.md) has measured rates, which are "
        "lower in bfloat16, in batches of 8,192 tokens. Operations were counted (matrix products "
        "of forward and backward, torch.utils.flop_counter), on pairs of "
        f"{assumed['length']} + {assumed['length']} pieces with a vocabulary of "
        f"{assumed['vocabulary']:,}; an update has {assumed['tokens_per_update']:,} target tokens. "
        f"Assumed, not measured: an A100 with {rates}; eight GPUs do {assumed['scaling']:.0%} of "
        "eight times the work of one, so their GPU hours are eight times the hours in the table.",
        "",
        "| recipe | parameters | GFLOP per target token | EFLOP in all | "
        + " | ".join(f"hours on {gpus}, {kind}" for kind in PEAK for gpus in ("1 GPU", "8 GPUs"))
        + " |",
        "|-" + "|-:" * (3 + 2 * len(PEAK)) + "|",
    ]
    for name, row in found["recipes"].items():
        hours = (f"{row['hours'][kind][n]:,.0f}" for kind in PEAK for n in ("1", "8"))
        lines.append(
            f"| `{name}` | {row['parameters']:,} | {row['flops_per_token'] / 1e9:.2f} | "
            f"{row['flops'] / 1e18:.1f} | " + " | ".join(hours) + " |"
        )
    lines += [
        "",
        "Look-ups, Aff, GELU, dropout, the loss, padding and the optimizer are not counted; the "
        "assumed utilisation allows for them.",
        "",
    ]
    return "\n".join(lines)


@command
def main() -> None:
    found = {
        "estimate_not_measured": True,
        "assumed": {
            "length": LENGTH,
            "vocabulary": VOCABULARY,
            "tokens_per_update": TOKENS,
            "peak_tflops": PEAK,
            "utilisation": UTILISATION,
            "scaling": SCALING,
        },
        "recipes": {name: estimate(name) for name in RECIPES},
    }
    write_text(HERE / "gpu_hours.json", json.dumps(found, indent=1) + "\n")
    write_text(HERE / "gpu_hours.md", report(found))
    print(HERE / "gpu_hours.md")


if __name__ == "__main__":
    main()
