"""Measures `python -m resmlp_mt.prepare local` on real text: time, memory, kept and dropped pairs.

    python -m benchmarks.prepare --data DATA --work DIR [--jobs 1 2]

DATA holds folders of `{train,valid,test_*}.{en,de,fr}.gz`. All training text of a language pair is
put together; all validation and test sets are held out. The tables are those of the first number of
processes; with every other the preparation is repeated and its manifest has to be the same. The
peers run on the same cleaned text: sentencepiece's encoding alone, written as pieces, also as two
independent processes at once, which shows what the second core is worth, and fairseq-preprocess on
those pieces, whose files have to be the same byte for byte. At last the text of the first pair is
prepared as many times over as make the size of WMT14. Writes benchmarks/prepare.md and .json.
"""

from __future__ import annotations

import argparse
import datetime
import filecmp
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.readme import write_block
from resmlp_mt import command_line
from resmlp_mt.files import write_text
from resmlp_mt.machine import processor, usable_cores

HERE = Path(__file__).parent

CORPORA = {
    "en-de": ("multi30k", "tatoeba-en-de", "wmt-news-en-de", "wmt-sample-en-de", "manpages-en-de"),
    "en-fr": ("multi30k", "tatoeba-en-fr", "hansard-en-fr", "wmt-news-en-fr", "manpages-en-fr"),
}

TARGETS = {"WMT14 en-de": ("en-de", 4_520_620), "WMT14 en-fr": ("en-fr", 40_842_333)}
"""Pairs before cleaning, as declared in resmlp_mt/preparation/corpora."""

SENTENCES = 2_000_000
"""Default of --input-sentence-size: the subword trainer reads no more."""

TWO_JOBS = 1.8
"""The goal of two processes: all steps this much faster than with one."""

COPIES = 18
"""How often the text of the first language pair is repeated, to be as long as WMT14 en-de."""

HASHES = 40_000_000

WORDS = 1_100_000


def program(name: str, *arguments: object) -> list[str]:
    """The command of a program of prepare_programs.py."""
    return [sys.executable, "-m", "benchmarks.prepare_programs", name, *map(str, arguments)]


@dataclass(frozen=True)
class Run:
    """What a command took: wall and processor seconds, MiB of its largest process, its output."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    output: str


def measure(command: list[str], log: Path | None = None) -> Run:
    """Runs a command and its children.

    The kernel counts the memory of this process at the start of the command to its peak, so this
    script stays small.
    """
    start = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL if log is None else log.open("w")
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... failed with {process.returncode}; see {log}")
    seconds = time.monotonic() - start
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output)


def collect(data: Path, pair: str, folder: Path) -> None:
    """Writes the local folder of a language pair: newstest2013 validates, all else is a test."""
    folder.mkdir(parents=True)
    for lang in pair.split("-"):
        with open(folder / f"train.{lang}.gz", "wb") as train:
            for corpus in CORPORA[pair]:
                # gzip files one after the other are a gzip file.
                train.write((data / corpus / f"train.{lang}.gz").read_bytes())
                for path in (data / corpus).glob(f"*.{lang}.gz"):
                    split = path.name.partition(".")[0]
                    if corpus.startswith("wmt-news") and split == "valid":
                        shutil.copy(path, folder / f"valid.{lang}.gz")
                    elif split != "train":
                        shutil.copy(path, folder / f"test_{corpus}_{split}.{lang}.gz")


def timed(pair: str, folder: Path, out: Path, jobs: int) -> Run:
    """One preparation."""
    source, target = pair.split("-")
    command = [sys.executable, "-m", "resmlp_mt.prepare", "local", "--from-dir", str(folder)]
    command += ["--src", source, "--tgt", target, "--out", str(out), "--jobs", str(jobs)]
    return measure(command, out.with_suffix(".log"))


def prepare(pair: str, folder: Path, out: Path, jobs: Sequence[int]) -> dict[str, Any]:
    """A preparation, a second one that finds everything done, and those with other `jobs`."""
    run = timed(pair, folder, out, jobs[0])
    again = timed(pair, folder, out, jobs[0])
    runs = {jobs[0]: (run, out)}
    for count in jobs[1:]:
        place = out.with_name(f"{pair}-{count}")
        runs[count] = timed(pair, folder, place, count), place
        if (place / "manifest.json").read_bytes() != (out / "manifest.json").read_bytes():
            raise SystemExit(f"{place} differs from {out}: see their manifest.json")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    sizes = [(out / "text" / f"train.{lang}").stat().st_size for lang in pair.split("-")]
    return {
        "seconds": run.seconds,
        "cpu_seconds": run.cpu_seconds,
        "cpu_seconds_again": again.cpu_seconds,
        "by_jobs": {str(count): facts_of(other, place) for count, (other, place) in runs.items()},
        "largest_process_mib": run.peak_mib,
        "steps": step_facts(out),
        "splits": manifest["splits"],
        "options": manifest["options"],
        "versions": manifest["versions"],
        "text_bytes": sum(sizes),
        "unknown": {
            name: 1000 * facts["unknown"] / facts["pieces"]
            for name, facts in manifest["tokens"].items()
        },
        "peers": peers(out, pair),
        "two_at_once": two_at_once(out, pair),
    }


def at_full_size(folder: Path, work: Path, jobs: Sequence[int]) -> dict[str, Any]:
    """Preparations of the first pair's text, `COPIES` times over, with each number of processes."""
    pair = next(iter(CORPORA))
    text, first = work / "repeated.in", work / f"repeated-{jobs[0]}"
    subprocess.run(program("repeat", folder, text, COPIES), check=True)
    by_jobs = {}
    for count in jobs:
        out = work / f"repeated-{count}"
        run = timed(pair, text, out, count)
        if (out / "manifest.json").read_bytes() != (first / "manifest.json").read_bytes():
            raise SystemExit(f"{out} differs from {first}: see their manifest.json")
        by_jobs[str(count)] = facts_of(run, out)
    manifest = json.loads((first / "manifest.json").read_text(encoding="utf-8"))
    return {"pair": pair, "by_jobs": by_jobs, "train": manifest["splits"]["train"]}


def facts_of(run: Run, out: Path) -> dict[str, Any]:
    """What a preparation took, as a whole and by step."""
    return {
        "seconds": run.seconds,
        "cpu_seconds": run.cpu_seconds,
        "peak_mib": run.peak_mib,
        "steps": step_facts(out),
    }


def step_facts(out: Path) -> dict[str, dict[str, float]]:
    """Times and memory of the main process, from the records of the steps."""
    return {
        path.stem: {
            "seconds": record["seconds"],
            "cpu_seconds": record["cpu_seconds"],
            "peak_mib": record["peak_kib"] / 1024,
        }
        for path in sorted((out / ".steps").glob("*.json"))
        if "seconds" in (record := json.loads(path.read_text(encoding="utf-8")))
    }


def peers(out: Path, pair: str) -> dict[str, dict[str, float]]:
    """sentencepiece's encoding alone, and fairseq-preprocess on its pieces, as one would use them.

    Exits if the files of fairseq-preprocess are not those of `out`.
    """
    languages = pair.split("-")
    folder = out.with_name(f"{pair}-pieces")
    folder.mkdir()
    names = [f"{split}.{lang}" for split in ("train", "valid") for lang in languages]
    files = [str(place / name) for name in names for place in (out / "text", folder)]
    encode = measure(program("encode", out / "spm.model", *files))
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--source-lang", languages[0]]
    command += ["--target-lang", languages[1], "--joined-dictionary"]
    command += ["--srcdict", str(out / "dict.txt"), "--trainpref", str(folder / "train")]
    command += ["--validpref", str(folder / "valid"), "--destdir", str(folder / "bin")]
    preprocess = measure([*command, "--workers", "2"], out.with_suffix(".fairseq.log"))
    for path in (folder / "bin").glob(f"*.{pair}.*"):
        if not filecmp.cmp(path, out / "bin" / path.name, shallow=False):
            raise SystemExit(f"{path} differs from the one in {out / 'bin'}")
    return {
        name: {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds, "peak_mib": run.peak_mib}
        for name, run in (("encode", encode), ("preprocess", preprocess))
    }


def two_at_once(out: Path, pair: str) -> float:
    """What two independent processes gain: each side's encoding, one after the other and at once.

    Nothing that is divided among two processes can gain more on this machine.
    """
    commands = [
        program("encode", out / "spm.model", text, os.devnull)
        for text in (out / f"text/train.{lang}" for lang in pair.split("-"))
    ]
    start = time.monotonic()
    for command in commands:
        subprocess.run(command, check=True)
    middle = time.monotonic()
    both = [subprocess.Popen(command) for command in commands]
    if any(process.wait() for process in both):
        raise SystemExit("sentencepiece's encoding failed")
    return (middle - start) / (time.monotonic() - middle)


def undivided(result: dict[str, Any], jobs: int) -> float:
    """Processor seconds in which one process works alone: the start and the subword trainer.

    With several jobs, the records of the steps have the time of the main process and of the
    trainer. In the other steps the main process works beside the workers. A run that finds
    everything done is little more than the start.
    """
    trainer = result["by_jobs"][str(jobs)]["steps"]["spm"]["cpu_seconds"]
    return float(trainer + result["cpu_seconds_again"])


def verdict(gain: float) -> str:
    """Whether two processes reach their goal."""
    return "met" if gain >= TWO_JOBS else "missed"


def amdahl(result: dict[str, Any], jobs: int) -> float:
    """The gain of `jobs` processes if each had a core of its own, by Amdahl's law."""
    alone = undivided(result, jobs)
    divided = result["by_jobs"][str(jobs)]["cpu_seconds"] - alone
    return float(result["cpu_seconds"] / (alone + divided / jobs))


def wmt_bytes(data: Path, pair: str) -> float:
    """Bytes of both sides for a pair of WMT news text: longer than the average of this data."""
    corpus = next(name for name in CORPORA[pair] if name.startswith("wmt-news"))
    sizes, lines = 0, 0
    for lang in pair.split("-"):
        path = data / corpus / f"train.{lang}.gz"
        text = subprocess.run(["gzip", "-dc", str(path)], capture_output=True, check=True).stdout
        sizes += len(text)
        lines = text.count(b"\n")
    return sizes / lines


def extrapolate(result: dict[str, Any], pairs: int, bytes_per_pair: float) -> dict[str, float]:
    """Processor hours of each step for `pairs` pairs of `bytes_per_pair`, by bytes of text."""
    factor = pairs * bytes_per_pair / result["text_bytes"]
    kept = result["splits"]["train"]["pairs"]
    sampled = min(2 * pairs, SENTENCES) / (2 * kept) * bytes_per_pair * kept / result["text_bytes"]
    hours = {"clean": 0.0, "spm": 0.0, "binarize": 0.0}
    for name, facts in result["steps"].items():
        step = name.partition("-")[0]
        if step in hours:
            hours[step] += facts["cpu_seconds"] * (sampled if step == "spm" else factor) / 3600
    return hours


def arrow(out: Path, pair: str, pairs: int) -> dict[str, Any] | None:
    """The peer: the same cleaning of text already cut into lines, in pyarrow, whole in memory."""
    try:
        version = importlib.metadata.version("pyarrow")
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [str(out / "text" / f"train.{lang}") for lang in pair.split("-")]
    run = measure(program("arrow", *paths), out.with_suffix(".arrow.log"))
    idle = measure([sys.executable, "-c", "import pyarrow.compute"])
    return {
        "version": version,
        "cpu_seconds": run.cpu_seconds - idle.cpu_seconds,
        "kept": int(run.output),
        "peak_mib": run.peak_mib,
        "mib_per_million_pairs": (run.peak_mib - idle.peak_mib) / pairs * 1e6,
    }


def table(rows: list[list[str]]) -> list[str]:
    """A Markdown table; the first row is the head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return [head, "|-" + "|-:" * (len(rows[0]) - 1) + "|", *body, ""]


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    pairs = list(found["pairs"])
    results = [found["pairs"][pair] for pair in pairs]
    machine = found["machine"]
    lines = [
        "# Preparation, measured",
        "",
        "Written by `python benchmarks/prepare.py`; do not edit.",
        "",
        f"{machine['date']}; {machine['cpu']}, {machine['cores']} core(s) used, "
        f"`--jobs {machine['jobs'][0]}`, "
        f"Python {results[0]['versions']['python']}, "
        + ", ".join(
            f"{name} {version}"
            for name, version in results[0]["versions"].items()
            if name != "python"
        )
        + ". No seed: nothing is drawn at random. Rates and "
        "estimates are by processor time (of the main process and all its children), which "
        "other programs hardly change; wall times are too long where other programs ran.",
        "",
        "## All training text of a language pair, through `prepare.py local`",
        "",
    ]
    rows = [["", *pairs]]
    rows.append(["pairs read", *(f"{r['splits']['train']['read']:,}" for r in results)])
    for index, step in enumerate(results[0]["splits"]["train"]["steps"]):
        name = step["step"]
        if name == "normalize":
            changed = (f"{r['splits']['train']['steps'][index]['changed']:,}" for r in results)
            rows.append(["changed by normalisation", *changed])
        else:
            dropped = (f"{r['splits']['train']['steps'][index]['dropped']:,}" for r in results)
            rows.append([f"dropped: {name}", *dropped])
    rows.append(["pairs kept", *(f"{r['splits']['train']['pairs']:,}" for r in results)])
    rows.append(["wall time, s", *(f"{r['seconds']:.0f}" for r in results)])
    rows.append(["processor time, s", *(f"{r['cpu_seconds']:.0f}" for r in results)])
    for step in ("clean", "spm", "binarize"):
        rows.append([f"- {step}, s", *(f"{r['steps'][step]['cpu_seconds']:.1f}" for r in results)])
    for step in ("clean", "binarize"):
        rates = (r["splits"]["train"]["read"] / r["steps"][step]["cpu_seconds"] for r in results)
        rows.append([f"{step}, pairs/s", *(f"{rate:,.0f}" for rate in rates)])
    rates = (r["splits"]["train"]["read"] / r["cpu_seconds"] for r in results)
    rows.append(["all steps, pairs/s", *(f"{rate:,.0f}" for rate in rates)])
    rows.append(["second run, all skipped, s", *(f"{r['cpu_seconds_again']:.1f}" for r in results)])
    for count in machine["jobs"][1:]:
        more = [r["by_jobs"][str(count)] for r in results]
        for key, name in (("seconds", "wall time"), ("cpu_seconds", "processor time")):
            times = (f"{facts[key]:.1f}" for facts in more)
            rows.append([f"{name} with `--jobs {count}`, same bytes, s", *times])
        gains = [r["seconds"] / m["seconds"] for r, m in zip(results, more, strict=True)]
        goal = ""
        if count == 2:
            goal = f" (goal {TWO_JOBS}: {verdict(min(gains))})"
        rows.append(
            [f"faster with `--jobs {count}`, all steps{goal}", *(f"{gain:.2f}" for gain in gains)]
        )
        for step in ("clean", "spm", "binarize"):
            by_step = (
                f"{r['steps'][step]['seconds'] / m['steps'][step]['seconds']:.2f}"
                for r, m in zip(results, more, strict=True)
            )
            rows.append([f"- {step}", *by_step])
        shares = (f"{undivided(r, count) / r['cpu_seconds']:.0%}" for r in results)
        rows.append(["start and subword trainer, which are not divided, of all", *shares])
        bounds = (f"{amdahl(r, count):.2f}" for r in results)
        rows.append([f"faster with `--jobs {count}` if each had a core, by Amdahl's law", *bounds])
    alone = (f"{r['two_at_once']:.2f}" for r in results)
    rows.append(["two independent sentencepiece processes at once, faster than in turn", *alone])
    main_peak = (f"{max(step['peak_mib'] for step in r['steps'].values()):.0f}" for r in results)
    rows.append(["peak of the main process, MiB", *main_peak])
    rows.append(
        ["peak of the largest process, MiB", *(f"{r['largest_process_mib']:.0f}" for r in results)]
    )
    worst = (f"{max(r['unknown'].values()):.3f}" for r in results)
    rows.append(["unknown pieces, worst split, per mille", *worst])
    lines += table(rows)
    lines += [
        "After the words are counted, BPE training is one thread of sentencepiece. It reads a "
        "sample, so its share falls as the text grows. Times with more processes are wall times, "
        "which say nothing where other programs ran. The gain of two independent processes is what "
        "a second processor of this machine is worth: two that share one core (hyperthreads) give "
        "far less than 2.",
        "",
        "## Beside its parts, on the same text",
        "",
    ]
    rows = [["", *pairs]]
    for name, title in (
        ("encode", "sentencepiece's encoding alone, one thread, written as pieces"),
        ("preprocess", "`fairseq-preprocess --workers 2` on those pieces"),
    ):
        for key, unit in (("cpu_seconds", "processor s"), ("seconds", "wall s")):
            rows.append([f"{title}, {unit}", *(f"{r['peers'][name][key]:.1f}" for r in results)])
        rates = (r["splits"]["train"]["pairs"] / r["peers"][name]["cpu_seconds"] for r in results)
        rows.append([f"{title}, pairs/s of a core", *(f"{rate:,.0f}" for rate in rates)])
    parts = (
        sum(peer["cpu_seconds"] for peer in r["peers"].values())
        / r["steps"]["binarize"]["cpu_seconds"]
        for r in results
    )
    rows.append(["both by processor time, divided by our binarize", *(f"{g:.1f}" for g in parts)])
    lines += table(rows)
    lines += [
        "The files of fairseq-preprocess are those of `prepare.py`, byte for byte. Encoding a "
        "sentence costs sentencepiece the same each time; `prepare.py` encodes a word once in a "
        "process.",
        "",
    ]
    lines += ["## Extrapolated to WMT14, one process", ""]
    lines += [
        "By bytes of text, with the length of WMT news sentences; the subword trainer reads at "
        f"most {SENTENCES:,} sentences. Estimates, not measurements.",
        "",
    ]
    rows = [
        [
            "",
            "pairs",
            "bytes/pair",
            "clean, min",
            "subword model, min",
            "binarise, min",
            "all, min",
        ]
    ]
    for name, facts in found["extrapolated"].items():
        minutes = [60 * value for value in facts["hours"].values()]
        numbers = [*(f"{value:.1f}" for value in minutes), f"{sum(minutes):.0f}"]
        rows.append([name, f"{facts['pairs']:,}", f"{facts['bytes_per_pair']:.0f}", *numbers])
    lines += table(rows)
    lines += full_size_table(found["full_size"])
    hashes, trainer = found["hash_table"], found["trainer"]
    lines += [
        "## Memory at full size, measured",
        "",
        f"- {hashes['entries']:,} distinct pairs in the deduplication table: "
        f"{hashes['table_mib']:.0f} MiB of table, {hashes['peak_mib']:.0f} MiB at the peak of the "
        f"process, {hashes['cpu_seconds']:.0f} s of one core.",
        f"- BPE of 32,000 pieces from {trainer['words']:,} different words: "
        f"{trainer['peak_mib']:.0f} MiB, {trainer['cpu_seconds']:.0f} s of one core.",
        "",
    ]
    if found["arrow"]:
        lines += ["## The same cleaning with pyarrow", ""]
        rows = [
            [
                "",
                "ours, pairs/s",
                "pyarrow, pairs/s",
                "pyarrow, peak MiB",
                "pyarrow, GiB at 40M pairs",
            ]
        ]
        for pair, facts in found["arrow"].items():
            result = found["pairs"][pair]
            kept = result["splits"]["train"]["pairs"]
            ours = result["splits"]["train"]["read"] / result["steps"]["clean"]["cpu_seconds"]
            theirs = kept / facts["cpu_seconds"]
            gib = facts["mib_per_million_pairs"] * 40 / 1024
            rows.append(
                [pair, f"{ours:,.0f}", f"{theirs:,.0f}", f"{facts['peak_mib']:.0f}", f"{gib:.0f}"]
            )
        version = next(iter(found["arrow"].values()))["version"]
        lines += table(rows)
        lines += [
            f"pyarrow {version}, one thread, text already decompressed and cleaned once (its "
            "easiest case), NFC, white space, the same length filters, deduplication by "
            "`group_by`; no held-out test, no line numbers in errors, order not kept. Memory grows "
            "with the text.",
            "",
        ]
    return "\n".join(lines)


def full_size_table(found: dict[str, Any]) -> list[str]:
    """The preparation of a text as long as WMT14's, with each number of processes."""
    by_jobs, train = found["by_jobs"], found["train"]
    fewest, one = next(iter(by_jobs.items()))
    lines = [
        "## As many pairs as WMT14 en-de has, measured",
        "",
        f"The {found['pair']} text {COPIES} times over: {train['read']:,} pairs read, "
        f"{train['pairs']:,} kept. Each copy begins every sentence at another word, so that the "
        "pairs differ and the words are the same.",
        "",
    ]
    rows = [["", *(f"`--jobs {count}`" for count in by_jobs)]]
    for key, name in (("seconds", "wall time, s"), ("cpu_seconds", "processor time, s")):
        rows.append([name, *(f"{facts[key]:.1f}" for facts in by_jobs.values())])
    rates = (train["read"] / facts["seconds"] for facts in by_jobs.values())
    rows.append(["pairs/s", *(f"{rate:,.0f}" for rate in rates)])
    gains = (one["seconds"] / facts["seconds"] for facts in by_jobs.values())
    goal = ""
    if "2" in by_jobs:
        goal = f" (goal of two: {TWO_JOBS}, {verdict(one['seconds'] / by_jobs['2']['seconds'])})"
    faster = f"faster than with `--jobs {fewest}`{goal}"
    rows.append([faster, *(f"{gain:.2f}" for gain in gains)])
    for step in ("clean", "spm", "binarize"):
        by_step = (
            one["steps"][step]["seconds"] / facts["steps"][step]["seconds"]
            for facts in by_jobs.values()
        )
        rows.append([f"- {step}", *(f"{gain:.2f}" for gain in by_step)])
    peaks = (f"{facts['peak_mib']:.0f}" for facts in by_jobs.values())
    rows.append(["peak of the largest process, MiB", *peaks])
    return [*lines, *table(rows)]


def write_readme(found: dict[str, Any]) -> None:
    """The block of the README that says how fast it is and what WMT14 would take."""
    rates = (
        f"{r['splits']['train']['read'] / r['cpu_seconds']:,.0f} pairs/s ({pair}, "
        f"{r['splits']['train']['read']:,} pairs)"
        for pair, r in found["pairs"].items()
    )
    hours = (
        f"{name} ({facts['pairs']:,} pairs) {60 * sum(facts['hours'].values()):.0f} minutes"
        for name, facts in found["extrapolated"].items()
    )
    text = (
        f"One core of {found['machine']['cpu']} prepares {' and '.join(rates)}, binarised data "
        f"and all (measured {found['machine']['date']});\n"
        f"extrapolated by bytes of text: {', '.join(hours)} of one core\n"
        "([benchmarks/prepare.md](benchmarks/prepare.md)).\n"
    )
    write_block("prepare", text)


@command_line.command
def main() -> None:
    """Runs everything and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the corpora")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder to work in")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2], metavar="N")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=False)
    found: dict[str, Any] = {
        "machine": {
            "cpu": processor(),
            "cores": usable_cores(),
            "jobs": args.jobs,
            "date": datetime.date.today().isoformat(),
        },
        "pairs": {},
        "arrow": {},
        "extrapolated": {},
    }
    for pair in CORPORA:
        collect(args.data, pair, args.work / f"{pair}.in")
        found["pairs"][pair] = prepare(pair, args.work / f"{pair}.in", args.work / pair, args.jobs)
        kept = found["pairs"][pair]["splits"]["train"]["pairs"]
        peer = arrow(args.work / pair, pair, kept)
        if peer:
            found["arrow"][pair] = peer
    first = next(iter(CORPORA))
    found["full_size"] = at_full_size(args.work / f"{first}.in", args.work, args.jobs)
    for name, (pair, count) in TARGETS.items():
        size = wmt_bytes(args.data, pair)
        hours = extrapolate(found["pairs"][pair], count, size)
        found["extrapolated"][name] = {"pairs": count, "bytes_per_pair": size, "hours": hours}
    run = measure(program("hash_table", HASHES))
    found["hash_table"] = {
        "entries": HASHES,
        "table_mib": int(run.output) / 2**20,
        "peak_mib": run.peak_mib,
        "cpu_seconds": run.cpu_seconds,
    }
    texts = [args.work / first / "text" / f"train.{lang}" for lang in first.split("-")]
    run = measure(program("trainer", WORDS, *texts))
    found["trainer"] = {"words": WORDS, "peak_mib": run.peak_mib, "cpu_seconds": run.cpu_seconds}
    write_text(HERE / "prepare.json", json.dumps(found, indent=2) + "\n")
    write_text(HERE / "prepare.md", report(found))
    write_readme(found)
    print(HERE / "prepare.md")


if __name__ == "__main__":
    main()
