"""This version of the project beside an earlier one: processor time and memory, interleaved.

    git worktree add BEFORE 43583f3
    python -m benchmarks.against --before BEFORE --data PREPARED --work DIR [--rounds 9]

PREPARED is a folder that ``data_scripts/prepare.py`` made, with a test set. Each version has a
process, and they take turns row by row; a ratio is the median of the rounds' ratios. Writes
against.json and against.md beside this file.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.against_worker import SIZES, model_options
from benchmarks.quality_report import versions
from benchmarks.quality_runs import HERE, ROOT
from resmlp_mt.command_line import command
from resmlp_mt.files import write_text
from resmlp_mt.machine import processor

WORKER = HERE / "against_worker.py"
MOST = 1.02


class Version:
    """A tree of the project, and the worker that measures it."""

    def __init__(self, tree: Path, data: Path, work: Path) -> None:
        self.tree = tree.resolve()
        self.work = work
        work.mkdir(parents=True, exist_ok=True)
        self.command = [sys.executable, WORKER, "--data", data.resolve(), "--work", work.resolve()]
        self.environment = {**os.environ, "PYTHONPATH": str(self.tree), "OMP_NUM_THREADS": "1"}

    def call(self, *command: object) -> str:
        """What a command of this version prints."""
        done = subprocess.run(
            [*map(str, command)], cwd=self.tree, env=self.environment, check=True, encoding="utf-8",
            stdout=subprocess.PIPE,
        )  # fmt: skip
        return done.stdout

    def train(self, data: Path) -> None:
        """Make a checkpoint of each size, after one update."""
        for size in SIZES:
            if not (self.work / f"{size}-checkpoint").exists():
                self.call(
                    sys.executable, "-m", "fairseq_cli.train", data / "bin", "--user-dir",
                    "resmlp_mt", "--cpu", *model_options(size), "--optimizer", "adam",
                    "--lr", "1e-4", "--max-tokens", 500, "--max-update", 1, "--disable-validation",
                    "--save-dir", self.work / f"{size}-checkpoint",
                )  # fmt: skip

    def export(self, checkpoints: Path, data: Path) -> None:
        """Export the checkpoints, which both versions read, to folders of this version."""
        for size in SIZES:
            self.exported(checkpoints / f"{size}-checkpoint/checkpoint_last.pt", data, size)

    def exported(self, checkpoint: Path, data: Path, name: str) -> Path:
        """The folder of a name that this version exports a checkpoint to, unless it is there."""
        folder = self.work.resolve() / name
        if not folder.exists():
            self.call(
                sys.executable, "-m", "resmlp_mt.export", checkpoint, "--out", folder,
                "--data", data / "bin", "--sentencepiece-model", data / "spm.model",
            )  # fmt: skip
        return folder

    def start(self) -> list[str]:
        """Start the worker; returns the names of its rows."""
        self.process = subprocess.Popen(
            [*map(str, self.command)], cwd=self.tree, env=self.environment, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        return self.answer().split("\t")

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the worker of {self.tree} has ended"
        return line.rstrip("\n")

    def seconds(self, row: str) -> float:
        """One run of a row."""
        assert self.process.stdin is not None
        print(row, file=self.process.stdin, flush=True)
        return float(self.answer())


def bootstrap(ratios: list[float]) -> tuple[float, float]:
    """95 % interval of the median."""
    draws = np.random.default_rng(1).choice(ratios, (10_000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def summary(row: str, before: list[float], now: list[float]) -> dict[str, Any]:
    ratios = [ours / theirs for theirs, ours in zip(before, now, strict=True)]
    return {
        "row": row,
        "before": statistics.median(before),
        "now": statistics.median(now),
        "ratio": statistics.median(ratios),
        "interval": bootstrap(ratios),
    }


def page(result: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = [
        "| row | before | now | now / before | |",
        "|-|-:|-:|-:|-|",
    ]
    for row in result["rows"]:
        low, high = row["interval"]
        verdict = "" if low <= MOST else f"more than {MOST - 1:.0%}"
        unit = "MiB" if "memory" in row["row"] else "s"
        lines.append(
            f"| {row['row']} | {row['before']:.3g} {unit} | {row['now']:.3g} {unit} | "
            f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}] | {verdict} |"
        )
    return "\n\n".join(
        [
            f"# This version beside {result['before']}",
            f"{result['machine']}, 1 thread; "
            f"{', '.join(map(' '.join, result['versions'].items()))}; {result['date']}; load "
            f"{result['load']:.1f} at the start.\nWritten by `benchmarks/against.py`.",
            f"Processor seconds of one run (MiB for memory); {result['rounds']} rounds in which "
            "the versions took turns.\nRatios are medians over the rounds, with 95 % intervals; "
            "below 1 this version is faster.",
            "\n".join(lines),
        ]
    )


@command
def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="tree of the earlier version")
    parser.add_argument("--data", type=Path, required=True, help="prepared corpus")
    parser.add_argument("--work", type=Path, required=True, help="folder for models")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", default="", help="those with this text in their names")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the tables")
    args = parser.parse_args()
    data, load = args.data.resolve(), os.getloadavg()[0]
    before = Version(args.before, data, args.work / "before")
    now = Version(ROOT, data, args.work / "now")
    before.train(data)
    for version in (before, now):
        version.export(before.work, data)
    rows, same = before.start(), now.start()
    assert rows == same
    rows = [row for row in rows if args.rows in row]
    times: dict[str, tuple[list[float], list[float]]] = {row: ([], []) for row in rows}
    for number in range(args.rounds + 1):
        for row in rows:
            turns = [(before, 0), (now, 1)]
            for version, index in turns if number % 2 else reversed(turns):
                seconds = version.seconds(row)
                if number:  # the first round warms up
                    times[row][index].append(seconds)
    for version in (before, now):
        version.process.terminate()
    table = [summary(row, *times[row]) for row in rows]
    if args.rows in "training, base, peak memory":
        peaks: tuple[list[float], list[float]] = ([], [])
        for _ in range(3):
            for version, found in zip((before, now), peaks, strict=True):
                found.append(float(version.call(*version.command, "--memory")))
        table.append(summary("training, base, peak memory of 2048 tokens", *peaks))
    commit = before.call("git", "log", "-1", "--format=%h of %as").strip()
    result = {
        "machine": processor(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "load": load,
        "before": commit,
        "rounds": args.rounds,
        "rows": table,
    }
    write_text(args.out / "against.json", json.dumps(result, indent=1) + "\n")
    write_text(args.out / "against.md", page(result) + "\n")
    print(page(result))


if __name__ == "__main__":
    main()
