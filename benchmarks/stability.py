"""Measures the stability of the 12-layer recipe: gradient norm and loss of its first updates.

    python -m benchmarks.stability --data DIR --work DIR --updates 2000 --core 0

DIR of --data is what `data_scripts/prepare.py CORPUS --vocab-size 8000` makes; its bin/ is
used. The model has the depth, LayerScale, optimizer and clipping of configs/mt/wmt14_en_de_12l.yaml
at a reduced size: a quarter of the width, small batches, a warm-up of 1,000 updates, not 32,000.

After t updates Adagrad's step is about lr / sqrt(t), for gradients of about one size. It is largest
when the warm-up ends: 0.2 / sqrt(32000) = 0.0011 in the recipe. The first of RUNS reaches the same
step after 1,000 updates; the others keep the rate of 0.2, which makes it 5.7 times larger.

A training ends early if its gradients are not finite. An interrupted run continues from its last
checkpoint; a finished one is not run again. Writes stability.json, stability.md and stability.png
beside this file.
"""

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogFormatter

from benchmarks.readme import command_line
from resmlp_mt.command_line import command
from resmlp_mt.files import replacing, write_text
from resmlp_mt.machine import processor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WARMUP = 1000  # updates
WINDOW = 20  # updates over which the tables and the thick lines average
NOT_FINITE = "gradients are Nan/Inf"  # fairseq's message when it ends a training for that reason

RECIPE = """
    --user-dir resmlp_mt --arch resmlp_mt_12l --cpu --share-all-embeddings --dropout 0.15
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1
    --optimizer adagrad --lr-scheduler fixed
""".split()

REDUCED = """
    --encoder-embed-dim 128 --decoder-embed-dim 128
    --encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4
    --max-source-positions 256 --max-target-positions 256 --max-tokens 300
""".split()

RUNS = {
    "the recipe's steps": ["--lr", "0.0354", "--clip-norm", "1.0"],  # 0.2 * sqrt(1000 / 32000)
    "the recipe's rate": ["--lr", "0.2", "--clip-norm", "1.0"],
    "the recipe's rate, not clipped": ["--lr", "0.2", "--clip-norm", "0.0"],
}
"""Learning rate and clipping of every training; the first stands for the recipe."""


def arguments(run: str, updates: int, seed: int) -> list[str]:
    """The options of fairseq-train besides the data and where to save."""
    return [
        *RECIPE, *RUNS[run], *REDUCED,
        "--warmup-updates", str(WARMUP), "--max-update", str(updates),
        "--save-interval-updates", "500", "--keep-interval-updates", "1", "--no-epoch-checkpoints",
        "--num-workers", "0", "--log-format", "json", "--log-interval", "1", "--seed", str(seed),
    ]  # fmt: skip


def train(args: argparse.Namespace, run: str) -> str:
    """Train, or continue, or do nothing; returns the logs of all parts, in order."""
    folder = args.work / "-".join([*re.findall(r"\w+", run), "seed", str(args.seed)])
    folder.mkdir(parents=True, exist_ok=True)
    logs = sorted(folder.glob("train.*.log"))
    finished = folder / f"finished-{args.updates}"
    if not finished.exists():
        log = folder / f"train.{len(logs):03}.log"
        command = [
            sys.executable, "-m", "fairseq_cli.train", str(args.data / "bin"),
            *arguments(run, args.updates, args.seed), "--save-dir", str(folder),
        ]  # fmt: skip
        if args.core is not None:
            command = ["taskset", "--cpu-list", str(args.core), *command]
        print(f"training; its log is {log}", flush=True)
        with log.open("w") as output:
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=output, stderr=output,
            )  # fmt: skip
        if done.returncode != 0 and NOT_FINITE not in log.read_text():
            sys.exit(f"stability: fairseq-train ended with status {done.returncode}; see {log}")
        finished.touch()
        logs.append(log)
    return "\n".join(log.read_text() for log in logs)


def rows(log: str, kind: str, updates: int) -> list[dict[str, float]]:
    """The log's rows of one kind, by update; for a repeated part, the last ones."""
    prefix = "valid_" if kind == "valid" else ""
    found = {}
    for row in re.findall(rf" \| {kind} \| (\{{.+\}})$", log, re.MULTILINE):
        values = {key.removeprefix(prefix): float(value) for key, value in json.loads(row).items()}
        found[values["num_updates"]] = values
    return [found[update] for update in sorted(found) if update <= updates]


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """The curves, and the settings that they were measured with."""
    packages = ("torch", "fairseq-fixed", "numpy")
    manifest = args.data / "manifest.json"
    facts = json.loads(manifest.read_text()) if manifest.exists() else {}
    runs, log = {}, ""
    for run in RUNS:
        log = train(args, run)
        inner = rows(log, "train_inner", args.updates)
        runs[run] = {
            "options": arguments(run, args.updates, args.seed),
            "ended_not_finite": NOT_FINITE in log,
            "curve": {
                name: [row[name] for row in inner]
                for name in ("num_updates", "loss", "nll_loss", "gnorm", "lr", "wpb")
            },
            "valid": [
                {name: row[name] for name in ("num_updates", "loss", "nll_loss", "ppl")}
                for row in rows(log, "valid", args.updates)
            ],
        }
    return {
        "machine": processor(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "seed": args.seed,
        "updates": args.updates,
        "corpus": {
            "pairs": facts.get("splits", {}).get("train", {}).get("pairs"),
            "inputs": facts.get("inputs"),
            "vocabulary": int(re.findall(r"dictionary: (\d+) types", log)[0]),
        },
        "parameters": int(
            re.findall(r"num\. shared model params: ([\d,]+)", log)[0].replace(",", "")
        ),
        "runs": runs,
    }


def plot(found: dict[str, Any], path: Path) -> None:
    """Gradient norm and loss of the first run's every update, and the means of all runs."""
    figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    labels = {"gnorm": "gradient norm", "loss": "loss, bits per token"}
    for color, (name, run) in enumerate(found["runs"].items()):
        curve, valid = run["curve"], run["valid"]
        updates = curve["num_updates"]
        starts = range(0, len(updates) - WINDOW + 1, WINDOW)
        middles = [statistics.fmean(updates[i : i + WINDOW]) for i in starts]
        for axis, key in zip(axes, labels, strict=True):
            if color == 0:
                axis.plot(updates, curve[key], color="C0", alpha=0.3, linewidth=0.7)
            means = [statistics.fmean(curve[key][i : i + WINDOW]) for i in starts]
            axis.plot(middles, means, color=f"C{color}", label=name)
            if run["ended_not_finite"]:
                axis.plot(updates[-1:], curve[key][-1:], "x", color=f"C{color}", markersize=9)
        axes[1].plot(
            [row["num_updates"] for row in valid], [row["loss"] for row in valid],
            "o", color=f"C{color}",
        )  # fmt: skip
    for axis, label in zip(axes, labels.values(), strict=True):
        axis.axvline(WARMUP, color="grey", linestyle=":", linewidth=1)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.legend()
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(LogFormatter())
        axis.yaxis.set_minor_formatter(LogFormatter())
    axes[0].set_title("ResMLP, 12 + 12 layers, Adagrad (dotted: the warm-up ends)")
    axes[1].set_xlabel(f"update (lines: means of {WINDOW}; points: validation; cross: not finite)")
    axes[1].set_xlim(0, found["updates"])
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def run_report(name: str, run: dict[str, Any], total: int) -> list[str]:
    """One training as Markdown."""
    curve = run["curve"]
    updates, norms = curve["num_updates"], curve["gnorm"]
    later = [(norm, update) for norm, update in zip(norms, updates, strict=True) if update > 100]
    peak, at = max(later or list(zip(norms, updates, strict=True)))
    infinite = sum(not math.isfinite(value) for value in (*curve["loss"], *norms))
    ending = (
        f"**Ended at update {updates[-1] + 1:,.0f}: its gradients were not finite.** Before that,"
        if run["ended_not_finite"]
        else f"{len(updates):,} of {total:,} updates were done. Of them,"
    )
    lines = [
        f"## {name[0].upper()}{name[1:]}",
        "",
        "    fairseq-train DATA/bin " + command_line(run["options"]),
        "",
        f"{ending} {infinite} of {2 * len(norms):,} losses and gradient norms were not finite. "
        f"Largest gradient norm{' after update 100' if later else ''}: "
        f"{peak:,.4g}, at update {at:,.0f}.",
        "",
        "| updates | learning rate | loss | gradient norm, median | largest | updates above 10 |",
        "|-:|-:|-:|-:|-:|-:|",
    ]
    bounds = [0, *(n for n in (20, 100, 200, 500, 1000, 1500) if n < len(updates)), len(updates)]
    for start, end in itertools.pairwise(bounds):
        part = slice(start, end)
        lines.append(
            f"| {updates[start]:,.0f} to {updates[end - 1]:,.0f} | {curve['lr'][end - 1]:.3g} | "
            f"{statistics.fmean(curve['loss'][part]):.2f} | {statistics.median(norms[part]):.2f} | "
            f"{max(norms[part]):,.4g} | {sum(norm > 10 for norm in norms[part])} |"
        )
    lines.append("")
    if run["valid"]:
        lines += ["| update | validation loss | perplexity |", "|-:|-:|-:|"]
        lines += [
            f"| {row['num_updates']:,.0f} | {row['loss']:.2f} | {row['ppl']:.1f} |"
            for row in run["valid"]
        ]
        lines.append("")
    return lines


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    corpus = found["corpus"]
    words = statistics.fmean(next(iter(found["runs"].values()))["curve"]["wpb"])
    pairs = ""
    if corpus["pairs"] is not None:
        pairs = f"{corpus['pairs']:,} training pairs (from {', '.join(corpus['inputs'])}); "
    lines = [
        "# The 12-layer recipe at reduced size",
        "",
        "Written by `python benchmarks/stability.py`; do not edit.",
        "",
        f"12 + 12 layers, {found['parameters']:,} parameters, joint vocabulary of "
        f"{corpus['vocabulary']:,}; {pairs}about {words:.0f} target "
        f"tokens per update. One thread of {found['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        + f"; seed {found['seed']}.",
        "",
        f"The learning rate rises linearly until update {WARMUP:,} and then stays. After t updates "
        "Adagrad's step is about lr / sqrt(t) for gradients of constant size, and largest when "
        "the warm-up ends. With the recipe's warm-up of 32,000 updates to 0.2, it is then "
        "0.2 / sqrt(32000) = 0.0011. The first training below reaches the same step with its "
        "shorter warm-up; the others keep the rate, and with it a step that is 5.7 times larger.",
        "",
        "The gradient norm is that of the mean gradient per token, over all parameters, before any "
        "clipping. The loss is label-smoothed, in bits per token, with dropout.",
        "",
        "![gradient norm and loss](stability.png)",
        "",
    ]
    for name, run in found["runs"].items():
        lines += run_report(name, run, found["updates"])
    return "\n".join(lines)


@command
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
    write_text(args.out / "stability.json", f"{{\n{content}\n}}\n")
    write_text(args.out / "stability.md", report(found))
    print(args.out / "stability.md")


if __name__ == "__main__":
    main()
