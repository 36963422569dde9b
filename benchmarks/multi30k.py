"""ResMLP beside fairseq's Transformer on Multi30k English-German, on CPU, at equal time.

    python -m benchmarks.multi30k --data DIR --work DIR --seeds 1 2 3 --minutes 30

DIR of --data has train, valid and test_2016_flickr as .en[.gz] and .de[.gz]. Both models have the
same width, depth, vocabulary, dropout, batches and threads. They run one after the other and stop
after the same wall-clock time. Finished parts are kept in --work and not run again. Writes
multi30k.json, multi30k.md and multi30k.png beside this file.
"""

import argparse
import datetime
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from fairseq import __version__ as fairseq_version

from benchmarks.readme import command_line, write_block
from resmlp_mt.command_line import command
from resmlp_mt.files import replacing, write_text
from resmlp_mt.machine import processor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SUBSET = "test"

SHARED = """
    --user-dir resmlp_mt --cpu --distributed-world-size 1 --encoder-layers 3 --decoder-layers 3
    --encoder-embed-dim 128 --decoder-embed-dim 128
    --encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4
    --share-all-embeddings --dropout 0.15 --max-source-positions 128 --max-target-positions 128
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1
    --optimizer adam --adam-betas (0.9,0.98) --clip-norm 1.0
    --lr-scheduler inverse_sqrt --warmup-updates 1000 --max-tokens 2000
    --log-format json --log-interval 100 --num-workers 0
""".split()

# Options of each model. Of the learning rates 2e-3, 4e-3 and 6e-3, the largest was best for ResMLP.
# The Transformer also learns faster with it for three epochs, but then more slowly than with 2e-3:
# its layers end in LayerNorm, which needs the smaller rate.
MODELS = {
    "resmlp": "--arch resmlp_mt_6l --layer-scale-init 1.0 --lr 6e-3".split(),
    "transformer": "--arch transformer --encoder-attention-heads 4 --lr 2e-3".split(),
}
NAMES = {"transformer": "fairseq transformer", "resmlp": "ResMLP"}


def environment(threads: int) -> dict[str, str]:
    """The environment of both models: threads, and settings of the allocator."""
    tunables = {"hugetlb": 1, "mmap_threshold": 33554432, "trim_threshold": 2147483648}
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={v}" for name, v in tunables.items()),
    }


def run(command: list[object], log: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Run a command, its output in ``log``; returns wall-clock and processor seconds."""
    words = [str(word) for word in command]
    if args.core is not None:
        words = ["taskset", "--cpu-list", str(args.core), *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    with log.open("w") as output:
        subprocess.run(
            words, cwd=ROOT, env=environment(args.threads), stdout=output, stderr=output, check=True
        )
    wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def fairseq(name: str) -> list[object]:
    return [sys.executable, "-m", f"fairseq_cli.{name}"]


def once(path: Path, make: Any) -> dict[str, Any]:
    """The result of ``make()``, computed when ``path`` does not hold it yet."""
    if not path.exists():
        write_text(path, json.dumps(make(), indent=1))
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def train(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one model for the time budget."""
    folder = args.work / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)

    def measure() -> dict[str, Any]:
        wall, cpu = run(
            [*fairseq("train"), args.work / "data/bin", *SHARED, *MODELS[name], "--seed", seed,
             "--save-dir", folder, "--stop-time-hours", args.minutes / 60],
            folder / "train.log", args,
        )  # fmt: skip
        log = (folder / "train.log").read_text()
        return {
            "seconds": wall,
            "cpu_seconds": cpu,
            "parameters": int(
                re.findall(r"num\. shared model params: ([\d,]+)", log)[0].replace(",", "")
            ),
            "train": rows(log, "train"),
            "valid": rows(log, "valid"),
        }

    return once(folder / "train.json", measure)


def rows(log: str, kind: str) -> list[dict[str, Any]]:
    marker = f" | {kind} | {{"
    return [json.loads("{" + line.split(marker)[1]) for line in log.splitlines() if marker in line]


def translate(name: str, seed: int, epoch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Translate and score the test set with the best checkpoint of the first ``epoch`` epochs."""
    folder = args.work / f"{name}-{seed}"
    log = train(name, seed, args)["valid"][:epoch]
    best = min(log, key=lambda row: float(row["valid_loss"]))["epoch"]
    checkpoint = folder / f"checkpoint{best}.pt"
    if not checkpoint.exists():  # the time limit left the last epoch unfinished
        checkpoint = folder / "checkpoint_last.pt"

    def measure() -> dict[str, Any]:
        output = folder / f"generate-{epoch}.txt"
        wall, _ = run(
            [*fairseq("generate"), args.work / "data/bin", "--user-dir", "resmlp_mt", "--path",
             checkpoint, "--cpu", "--beam", 4, "--batch-size", 32, "--remove-bpe", "sentencepiece",
             "--gen-subset", SUBSET],
            output, args,
        )  # fmt: skip
        scores = folder / f"scores-{epoch}.json"
        run(
            [sys.executable, "-m", "resmlp_mt.score", "--generate-output", output, "--ref",
             args.work / "data/raw/test.de", "-l", "en-de", "--json", scores],
            folder / f"scores-{epoch}.txt", args,
        )  # fmt: skip
        report = json.loads(scores.read_text())
        return {"checkpoint_epoch": best, "seconds": wall, "report": report}

    return once(folder / f"translate-{epoch}.json", measure)


def finished_epochs(log: dict[str, Any]) -> int:
    """Epochs that ran to their end; the time limit cuts the last one short."""
    updates = [int(row["train_num_updates"]) for row in log["train"]]
    per_epoch = updates[0]
    return sum(after % per_epoch == 0 for after in updates)


def measured(name: str, seed: int, epochs: int | None, args: argparse.Namespace) -> dict[str, Any]:
    """One row of a table: a model after so many epochs, or after all its time (None)."""
    log = train(name, seed, args)
    epochs = len(log["valid"]) if epochs is None else epochs
    result = translate(name, seed, epochs, args)
    scores = {row["metric"]: row for row in result["report"]["scores"]}
    last = log["train"][epochs - 1]
    (speed,) = re.findall(
        r"Translated ([\d,]+) sentences .*\(([\d.]+) sentences/s",
        (args.work / f"{name}-{seed}" / f"generate-{epochs}.txt").read_text(),
    )
    return {
        "model": name,
        "seed": seed,
        "updates": int(last["train_num_updates"]),
        "minutes": float(last["train_wall"]) / 60,
        "words_per_second": sum(float(row["train_wps"]) for row in log["train"])
        / len(log["train"]),
        "best_epoch": result["checkpoint_epoch"],
        "valid_ppl": min(float(row["valid_ppl"]) for row in log["valid"][:epochs]),
        "sentences": result["report"]["sentences"],
        "translated": int(speed[0].replace(",", "")),
        "sentences_per_second": float(speed[1]),
        "bleu": scores["bleu"]["score"],
        "chrf": scores["chrf"]["score"],
        "signatures": {key: scores[key]["signature"] for key in ("bleu", "chrf")},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown, followed by the ratio ResMLP / Transformer of the mean BLEU."""
    columns = {
        "updates": "{updates}", "training, min": "{minutes:.1f}",
        "training, words/s": "{words_per_second:.0f}", "best epoch": "{best_epoch}",
        "valid ppl": "{valid_ppl:.2f}", "translated": "{translated} of {sentences}",
        "sentences/s": "{sentences_per_second:.1f}", "BLEU": "{bleu:.2f}", "chrF": "{chrf:.2f}",
    }  # fmt: skip
    lines = ["| model | seed | " + " | ".join(columns) + " |", "|-" * (len(columns) + 2) + "|"]
    for row in rows:
        cells = [form.format(**row) for form in columns.values()]
        lines.append(f"| {NAMES[row['model']]} | {row['seed']} | " + " | ".join(cells) + " |")
    mean = {
        name: statistics.mean(row["bleu"] for row in rows if row["model"] == name)
        for name in MODELS
    }
    ratio = mean["resmlp"] / mean["transformer"]
    lines += ["", f"BLEU, ResMLP / Transformer: {ratio:.3f} ({len(rows) // 2} seed(s))."]
    return "\n".join(lines)


def plot(args: argparse.Namespace) -> None:
    """Validation perplexity against minutes of training and against updates."""
    figure, (by_time, by_update) = plt.subplots(
        1, 2, figsize=(10, 4), sharey=True, layout="constrained"
    )
    for color, name in zip(("C0", "C1"), MODELS, strict=True):
        for index, seed in enumerate(args.seeds):
            log = train(name, seed, args)
            ppl = [float(row["valid_ppl"]) for row in log["valid"]]
            label = NAMES[name] if index == 0 else None
            minutes = [float(row["train_wall"]) / 60 for row in log["train"]]
            updates = [int(row["valid_num_updates"]) for row in log["valid"]]
            by_time.plot(minutes, ppl, "o-", color=color, markersize=3, label=label)
            by_update.plot(updates, ppl, "o-", color=color, markersize=3)
    by_time.set(xlabel="minutes of training", ylabel="validation perplexity", yscale="log")
    by_update.set(xlabel="updates")
    ticks = [5, 6, 8, 10, 15, 20, 30, 50]
    by_time.set_yticks(ticks, [str(tick) for tick in ticks], minor=False)
    by_time.minorticks_off()
    for axes in (by_time, by_update):
        axes.grid(alpha=0.3)
    by_time.legend(frameon=False)
    figure.suptitle("Multi30k English-German, one seed each" if len(args.seeds) == 1 else
                    "Multi30k English-German")  # fmt: skip
    with replacing(HERE / "multi30k.png") as partial:
        figure.savefig(partial, dpi=120, format="png")


def summary(result: dict[str, Any]) -> str:
    """For the README: how long the recipe takes, and what BLEU to expect."""
    rows = {name: [row for row in result["equal_time"] if row["model"] == name] for name in MODELS}
    tables = {
        (table, name, metric): statistics.mean(
            row[metric] for row in result[table] if row["model"] == name
        )
        for table in ("equal_time", "equal_updates")
        for name in MODELS
        for metric in ("bleu", "chrf")
    }

    def scores(table: str, name: str) -> str:
        return f"BLEU {tables[table, name, 'bleu']:.2f} and chrF {tables[table, name, 'chrf']:.2f}"

    ours, theirs = MODELS
    minutes = statistics.mean(row["minutes"] for row in rows["resmlp"])
    seeds = f", mean of {len(rows['resmlp'])} seeds" if len(rows["resmlp"]) > 1 else ""
    last = [log["train"][-1]["epoch"] for log in result["logs"]["resmlp"]]
    updates, epochs, best = (
        _listed(numbers)
        for numbers in (
            [row["updates"] for row in rows["resmlp"]],
            last,
            [row["best_epoch"] for row in rows["resmlp"]],
        )
    )
    return (
        "On Multi30k, this training, with fairseq's criterion and a time limit in place of "
        f"`--max-epoch`, ended after {minutes:.0f} minutes:\n{updates} updates, in epoch "
        f"{epochs}. The best checkpoint, of epoch {best}, reached "
        f"{scores('equal_time', ours)} on test_2016_flickr{seeds}.\n"
        f"fairseq's Transformer reached {scores('equal_time', theirs)} in the same time. "
        f"After equal\nupdates, ResMLP had {scores('equal_updates', ours)}, and the Transformer "
        f"{scores('equal_updates', theirs)}.\n"
        f"Measured {result['date']} on {result['machine']}\n"
        "([benchmarks/multi30k.md](benchmarks/multi30k.md))."
    )


def _listed(numbers: list[int]) -> str:
    """The different numbers of several seeds, as one reads them."""
    return " / ".join(f"{number:,}" for number in sorted(set(numbers)))


def report(args: argparse.Namespace) -> None:
    """Write the tables and the plot."""
    at_time, at_updates = [], []
    for seed in args.seeds:
        epochs = min(finished_epochs(train(name, seed, args)) for name in MODELS)
        for name in MODELS:
            at_time.append(measured(name, seed, None, args))
            at_updates.append(measured(name, seed, epochs, args))
    logs = {name: [train(name, seed, args) for seed in args.seeds] for name in MODELS}
    machine = f"{platform.machine()} ({processor()}), {args.threads} thread(s) on one core each"
    signatures = at_time[0]["signatures"]
    manifest = json.loads((args.work / "data/manifest.json").read_text())
    pairs = manifest["splits"]["train"]["pairs"]
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fairseq": fairseq_version,
        **{name: manifest["versions"][name] for name in ("numpy", "sentencepiece")},
    }
    result = {
        "machine": machine,
        "date": datetime.date.today().isoformat(),
        "versions": versions,
        "options": {"shared": SHARED, **MODELS},
        "parameters": {name: logs[name][0]["parameters"] for name in MODELS},
        "equal_time": at_time,
        "equal_updates": at_updates,
        "logs": logs,
    }
    write_text(HERE / "multi30k.json", json.dumps(result, indent=1) + "\n")
    write_block("multi30k", summary(result))
    plot(args)
    parameters = ", ".join(
        f"{NAMES[name]} {logs[name][0]['parameters'] / 1e6:.2f} M" for name in MODELS
    )
    idle = ", ".join(
        f"{NAMES[name]} {log['cpu_seconds']:.0f} of {log['seconds']:.0f} s"
        for name in MODELS
        for log in logs[name]
    )
    write_text(
        HERE / "multi30k.md",
        f"""# Multi30k English-German: ResMLP beside fairseq's Transformer on CPU

{machine}; {", ".join(map(" ".join, versions.items()))};
{result["date"]}. Written by `benchmarks/multi30k.py`.
Trained on {pairs:,} pairs of Multi30k, as cleaned by `data_scripts/prepare.py`; checkpoints chosen
by validation loss; scored on test_2016_flickr, beam 4.

Both models have 3 + 3 layers, width 128, hidden width 512, 4 heads, one vocabulary of 4,000 pieces,
dropout 0.15, Adam with the same schedule, the same batches and one thread; they ran one after the
other. The peak learning rate is each model's own, see below.
Parameters: {parameters}.

## Equal time: {args.minutes:.0f} minutes of training each

{table(at_time)}

## Equal updates: as many whole epochs as both finished

{table(at_updates)}

The paper's ratio, of tokenized BLEU on WMT14 En-De, is 0.967 for 6 layers and 0.982 for 12.

Signatures: BLEU `{signatures["bleu"]}`, chrF `{signatures["chrf"]}`.
Processor seconds of the training process: {idle}.

![validation perplexity](multi30k.png)

The shared options were

    {command_line(SHARED)}

and beside them

"""
        + "".join(f"    {NAMES[name]}: {' '.join(options)}\n" for name, options in MODELS.items()),
    )
    print((HERE / "multi30k.md").read_text())


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw corpus")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, default=30.0, help="training time of each model")
    parser.add_argument("--threads", type=int, default=1, help="threads of every process")
    parser.add_argument("--core", type=int, help="run on this processor core only")
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "data/bin").exists():
        run(
            [sys.executable, "data_scripts/prepare.py", "local", "--from-dir", args.data.resolve(),
             "--src", "en", "--tgt", "de", "--out", args.work / "data", "--vocab-size", 4000,
             "--jobs", args.threads],
            args.work / "prepare.log", args,
        )  # fmt: skip
    for seed in args.seeds:
        for name in MODELS:
            print(f"{datetime.datetime.now():%H:%M:%S} training {name}, seed {seed}", flush=True)
            train(name, seed, args)
    report(args)


if __name__ == "__main__":
    main()
