"""Does the 12-layer recipe train stably? Gradient norm and loss of its first updates.

    python benchmarks/stability.py --data DIR --work DIR --updates 2000 --core 0

DIR of --data is what `data_scripts/prepare.py CORPUS --vocab-size 8000` makes; its bin/ is
used. The model has the depth, LayerScale, optimizer and schedule of configs/mt/wmt14_en_de_12l.yaml
at a reduced size: a quarter of the width, small batches, a warm-up of 1,000 updates (half of 2,000,
as it is half of the recipe's). An interrupted run goes on from its last checkpoint; a finished one
is not run again. Writes stability.json, stability.md and stability.png beside this file.
"""

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogFormatter

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WARMUP = 1000  # updates
WINDOW = 20  # updates over which the tables and the thick lines average

RECIPE = """
    --user-dir resmlp_mt --arch resmlp_mt_12l --cpu --share-all-embeddings --dropout 0.15
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1
    --optimizer adagrad --lr 0.2 --lr-scheduler fixed --clip-norm 0.0
""".split()

REDUCED = """
    --encoder-embed-dim 128 --decoder-embed-dim 128
    --encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4
    --max-source-positions 256 --max-target-positions 256 --max-tokens 1000
""".split()


def arguments(updates: int, seed: int) -> list[str]:
    """The options of fairseq-train besides the data and where to save."""
    return [
        *RECIPE, *REDUCED, "--warmup-updates", str(WARMUP), "--max-update", str(updates),
        "--save-interval-updates", "200", "--keep-interval-updates", "1", "--no-epoch-checkpoints",
        "--num-workers", "0", "--log-format", "json", "--log-interval", "1", "--seed", str(seed),
    ]  # fmt: skip


def train(args: argparse.Namespace) -> str:
    """Train, or go on, or do nothing; returns the logs of all parts, in their order."""
    folder = args.work / f"seed-{args.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    logs = sorted(folder.glob("train.*.log"))
    finished = folder / f"finished-{args.updates}"
    if not finished.exists():
        log = folder / f"train.{len(logs):03}.log"
        command = [
            sys.executable, "-m", "fairseq_cli.train", str(args.data / "bin"),
            *arguments(args.updates, args.seed), "--save-dir", str(folder),
        ]  # fmt: skip
        if args.core is not None:
            command = ["taskset", "--cpu-list", str(args.core), *command]
        print(f"training; its log is {log}", flush=True)
        with log.open("w") as output:
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=output, stderr=output,
            )  # fmt: skip
        if done.returncode != 0:
            sys.exit(f"stability: fairseq-train ended with status {done.returncode}; see {log}")
        finished.touch()
        logs.append(log)
    return "\n".join(log.read_text() for log in logs)


def rows(log: str, kind: str, updates: int) -> list[dict[str, float]]:
    """The numbers that the log holds of one kind, by update; of a repeated part the last."""
    prefix = "valid_" if kind == "valid" else ""
    found = {}
    for row in re.findall(rf" \| {kind} \| (\{{.+\}})$", log, re.MULTILINE):
        values = {key.removeprefix(prefix): float(value) for key, value in json.loads(row).items()}
        found[values["num_updates"]] = values
    return [found[update] for update in sorted(found) if update <= updates]


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """The curves and how they came about."""
    log = train(args)
    inner = rows(log, "train_inner", args.updates)
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = re.search(r"model name\s*: (.+)", cpuinfo)
    packages = ("torch", "fairseq-fixed", "numpy")
    manifest = args.data / "manifest.json"
    facts = json.loads(manifest.read_text()) if manifest.exists() else {}
    return {
        "machine": cpu.group(1) if cpu else platform.processor(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "seed": args.seed,
        "options": arguments(args.updates, args.seed),
        "corpus": {
            "pairs": facts.get("splits", {}).get("train", {}).get("pairs"),
            "inputs": facts.get("inputs"),
            "vocabulary": int(re.findall(r"dictionary: (\d+) types", log)[0]),
        },
        "parameters": int(
            re.findall(r"num\. shared model params: ([\d,]+)", log)[0].replace(",", "")
        ),
        "curve": {
            name: [row[name] for row in inner]
            for name in ("num_updates", "loss", "nll_loss", "gnorm", "lr", "wpb")
        },
        "valid": [
            {name: row[name] for name in ("num_updates", "loss", "nll_loss", "ppl")}
            for row in rows(log, "valid", args.updates)
        ],
    }


def plot(found: dict[str, Any], path: Path) -> None:
    """Gradient norm and loss of every update, and their means over a window."""
    curve, valid = found["curve"], found["valid"]
    updates = curve["num_updates"]
    figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    labels = {"gnorm": "gradient norm", "loss": "loss, bits per token"}
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        axis.plot(updates, curve[name], color="C0", alpha=0.3, linewidth=0.7, label="every update")
        starts = range(0, len(updates) - WINDOW + 1, WINDOW)
        means = [statistics.fmean(curve[name][i : i + WINDOW]) for i in starts]
        middles = [statistics.fmean(updates[i : i + WINDOW]) for i in starts]
        axis.plot(middles, means, color="C0", label=f"mean of {WINDOW} updates")
        axis.axvline(WARMUP, color="grey", linestyle=":", linewidth=1)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    for which in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        which(LogFormatter())
    axes[0].set_title(
        "ResMLP, 12 + 12 layers, Adagrad 0.2, LayerScale 0.2 (dotted: the warm-up ends)"
    )
    axes[1].plot(
        [row["num_updates"] for row in valid], [row["loss"] for row in valid],
        "o", color="C1", label="validation",
    )  # fmt: skip
    axes[1].set_xlabel("update")
    axes[1].set_xlim(0, max(updates))
    for axis in axes:
        axis.legend()
    partial = path.with_suffix(".partial")
    figure.savefig(partial, dpi=120, format="png")
    os.replace(partial, path)


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    curve, corpus = found["curve"], found["corpus"]
    updates, norms = curve["num_updates"], curve["gnorm"]
    infinite = sum(not math.isfinite(value) for value in (*curve["loss"], *norms))
    later = [(norm, update) for norm, update in zip(norms, updates, strict=True) if update > 100]
    peak, at = max(later or list(zip(norms, updates, strict=True)))
    pairs = ""
    if corpus["pairs"] is not None:
        pairs = f"{corpus['pairs']:,} training pairs (from {', '.join(corpus['inputs'])}); "
    lines = [
        "# The 12-layer recipe at reduced size",
        "",
        "Written by `python benchmarks/stability.py`; do not edit.",
        "",
        f"12 + 12 layers, {found['parameters']:,} parameters, joint vocabulary of "
        f"{corpus['vocabulary']:,}; {pairs}about {statistics.fmean(curve['wpb']):.0f} target "
        f"tokens per update. One thread of {found['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        + f"; seed {found['seed']}.",
        "",
        "    fairseq-train DATA/bin " + shlex.join(found["options"]),
        "",
        "The gradient norm is that of the mean gradient per token, over all parameters, without "
        "clipping. The loss is label-smoothed, in bits per token, with dropout. Learning rate: "
        f"linear to 0.2 at update {WARMUP:,}, then constant.",
        "",
        "![gradient norm and loss](stability.png)",
        "",
        "| updates | learning rate | loss | gradient norm, mean | largest |",
        "|-:|-:|-:|-:|-:|",
    ]
    bounds = [0, *(n for n in (20, 100, 200, 500, 1000, 1500) if n < len(updates)), len(updates)]
    for start, end in itertools.pairwise(bounds):
        part = slice(start, end)
        lines.append(
            f"| {updates[start]:,.0f} to {updates[end - 1]:,.0f} | {curve['lr'][end - 1]:.3g} | "
            f"{statistics.fmean(curve['loss'][part]):.2f} | {statistics.fmean(norms[part]):.2f} | "
            f"{max(norms[part]):.2f} |"
        )
    lines += [
        "",
        f"Losses and gradient norms that were not finite: {infinite} of {2 * len(norms):,}. "
        f"Largest gradient norm{' after update 100' if later else ''}: {peak:.2f}, at update "
        f"{at:,.0f}.",
        "",
        "| update | validation loss | perplexity |",
        "|-:|-:|-:|",
        *(
            f"| {row['num_updates']:,.0f} | {row['loss']:.2f} | {row['ppl']:.1f} |"
            for row in found["valid"]
        ),
        "",
    ]
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Complete or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a prepared folder, with bin/")
    parser.add_argument("--work", type=Path, required=True, help="folder for the run")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the results")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--core", type=int, help="run on this processor core only")
    args = parser.parse_args()
    args.data, args.work = args.data.resolve(), args.work.resolve()
    if not (args.data / "bin").is_dir():
        sys.exit(f"stability: --data {args.data} has no folder bin; make it with prepare.py")
    found = collect(args)
    plot(found, args.out / "stability.png")
    content = ",\n".join(f" {json.dumps(key)}: {json.dumps(found[key])}" for key in found)
    write(args.out / "stability.json", f"{{\n{content}\n}}\n")
    write(args.out / "stability.md", report(found))
    print(args.out / "stability.md")


if __name__ == "__main__":
    main()
