"""The runs of quality.py: prepared data, trainings for a budget of processor time, translations.

Everything finished is kept in the folder of --work and not repeated.
"""

import gzip
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from resmlp_mt.files import write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SAMPLES = 1000  # samples of the paired bootstrap
Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A training: a model of the config on a set, with a seed, for processor seconds.

    ``extra`` are more options of fairseq-train, from the grid.
    """

    model: str
    set: str
    seed: int
    budget: int
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its folder."""
        parts = [self.model, str(self.seed), str(self.budget), *self.extra]
        return re.sub(r"-+", "-", "-".join(parts))


class Workshop:
    """Makes the runs, from the config, the corpora and the folder of finished parts."""

    def __init__(self, config: Path, data: Path, work: Path) -> None:
        self.name = config.stem
        self.config = read_config(config)
        for declared in self.config["sets"].values():
            declared.setdefault("budgets", self.config["budgets"])
        self.data = data.resolve()
        self.work = work.resolve()

    def folder(self, run: Run) -> Path:
        return self.work / run.set / run.name

    def prepared(self, name: str, model: str | None = None) -> Path:
        """The folder that prepare.py made of a set.

        A model may have ``samples`` (sampled copies of its training set), ``concatenate`` (how many
        neighbouring pairs its training set joins), or a ``teacher`` (the folder of an exported
        model, whose translations its training set has as targets).
        """
        declared = self.config["sets"][name]
        own = self.config["models"][model] if model else {}
        samples, teacher = self._samples(model), own.get("teacher")
        joined = own.get("concatenate")
        parts = ["data"]
        if samples:
            parts.append(f"{samples}-samples")
        if joined:
            parts.append(f"{joined}-joined")
        if teacher:
            parts.append(f"taught-{Path(teacher).name}")
        out = self.work / name / "-".join(parts)
        if not (out / "manifest.json").exists():
            text = self._texts(name)
            if teacher:
                text = self._taught(text, declared["source"], declared["target"], teacher)
            command = [
                sys.executable, "data_scripts/prepare.py", "local", "--from-dir", text,
                "--src", declared["source"], "--tgt", declared["target"], "--out", out,
                "--vocab-size", declared["vocabulary"], "--jobs", self.config["threads"],
                *(["--samples", samples] if samples else []),
                *(["--concatenate", joined] if joined else []),
            ]  # fmt: skip
            self.execute(command, out.with_suffix(".log"))
        return out

    def _samples(self, model: str | None) -> int:
        """Sampled copies of the training set that a model is trained on."""
        return int(self.config["models"][model].get("samples", 0)) if model else 0

    def _texts(self, name: str) -> Path:
        """The folder with the text of a set, as the config declares it."""
        declared = self.config["sets"][name]
        text = self.work / name / "text"
        text.mkdir(parents=True, exist_ok=True)
        splits = {"train": declared["train"], "valid": declared["valid"]}
        for index, parts in enumerate(declared["tests"].values()):
            splits[f"test{index or ''}"] = [parts] if isinstance(parts, str) else parts
        languages = declared["source"], declared["target"]
        for split, parts in splits.items():
            pairs = [pair for part in parts for pair in self._pairs(part, *languages)]
            most = declared.get("most_source_tokens")
            if most is not None and not split.startswith("test"):
                pairs = [pair for pair in pairs if len(pair[0].split()) <= most]
            if split == "train":
                pairs = pairs[: declared.get("most_pairs")]
            for language, lines in zip(languages, zip(*pairs, strict=True), strict=True):
                write_text(text / f"{split}.{language}", "".join(lines))
        return text

    def _taught(self, text: Path, source: str, target: str, teacher: str) -> Path:
        """The text with the training targets replaced by a teacher's translations.

        Sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947).
        """
        taught = text.with_name(f"text-taught-{Path(teacher).name}")
        shutil.copytree(text, taught, dirs_exist_ok=True)
        command = [
            sys.executable, "-m", "resmlp_mt.translate", ROOT / teacher,
            "--input", text / f"train.{source}", "--output", taught / f"train.{target}",
            "--beam", self.config["beam"], "--threads", self.config["threads"],
        ]  # fmt: skip
        self.execute(command, taught.with_suffix(".log"))
        return taught

    def _pairs(self, part: str, *languages: str) -> list[tuple[str, ...]]:
        """Lines of a file or of the named half of it."""
        path, _, half = part.partition(":")
        sides = []
        for language in languages:
            with gzip.open(self.data / f"{path}.{language}.gz", "rt", encoding="utf-8") as file:
                sides.append(file.readlines())
        pairs = list(zip(*sides, strict=True))
        middle = len(pairs) // 2
        return {"": pairs, "first": pairs[:middle], "second": pairs[middle:]}[half]

    def options(self, run: Run) -> list[str]:
        """Options of fairseq-train, except paths and time."""
        declared = self.config["sets"][run.set]
        return [
            *shlex.split(self.config["options"]),
            "--warmup-updates", str(self.config["warmup_updates"]),
            *shlex.split(self.config["models"][run.model]["options"]),
            *shlex.split(declared.get("options", "")),
            *run.extra, "--seed", str(run.seed),
        ]  # fmt: skip

    def train(self, run: Run) -> Json:
        """Train for the budget; an interrupted training continues from its last checkpoint."""
        folder, every = self.folder(run), self.config["save_every"]
        data = self.prepared(run.set, run.model)
        samples = self._samples(run.model)
        bins = [data / "bin", *(data / f"bin{copy}" for copy in range(2, samples + 1))]

        def measure() -> Json:
            command = [
                sys.executable, "benchmarks/processor_time.py", ":".join(map(str, bins)),
                *self.options(run),
                "--save-dir", folder, "--stop-time-hours", run.budget / 3600,
                "--save-interval-updates", every, "--validate-interval-updates", every,
                "--no-epoch-checkpoints", "--validate-interval", 10**6, "--save-interval", 10**6,
            ]  # fmt: skip
            self.execute(command, folder / "train.log")
            return {"options": self.options(run), **training_curve(folder / "train.log")}

        result = once(folder / "train.json", measure)
        if values(result["options"]) != values(self.options(run)):
            raise SystemExit(f"{folder} has a training with other options: move it away.")
        return result

    def tuning(self, name: str, model: str, budget: int) -> list[Run]:
        """The runs of the grid, with seed 1, without the one that the config has anyway."""
        grid = self.config["models"][model]["grid"]
        own = values(self.options(Run(model, name, 1, budget)))
        changes = (
            tuple(
                word
                for option, value in zip(grid, chosen, strict=True)
                if value is not None and own.get(option) != [str(value)]
                for word in (option, str(value))
            )
            for chosen in product(*grid.values())
        )
        return [Run(model, name, 1, budget, extra) for extra in changes if extra]

    def is_trained(self, run: Run) -> bool:
        """Whether the training is finished."""
        return (self.folder(run) / "train.json").exists()

    def translate(self, run: Run, updates: int, test: int) -> list[str]:
        """Translations of a test set, by number, with the checkpoint after some updates.

        Sentences longer than the model allows have empty translations.
        """
        folder = self.folder(run)
        subset = f"test{test or ''}"

        def measure() -> Json:
            output = folder / f"{subset}-{updates}.txt"
            own = shlex.split(self.config["sets"][run.set].get("generate", ""))
            options = "--beam", str(self.config["beam"]), "--remove-bpe", "sentencepiece", *own
            self.generate(run, updates, subset, output, *options)
            found = re.findall(r"^H-(\d+)\t\S+\t(.*)$", output.read_text(), re.MULTILINE)
            lines = {int(number): text for number, text in found}
            expected = len(self.text(run.set, test)[0])
            return {"lines": [lines.get(number, "") for number in range(expected)]}

        lines: list[str] = once(folder / f"{subset}-{updates}.json", measure)["lines"]
        return lines

    def generate(self, run: Run, updates: int, subset: str, output: Path, *options: str) -> None:
        """fairseq-generate with the checkpoint after some updates; skips sentences too long."""
        data = self.prepared(run.set, run.model)
        command = [
            sys.executable, "-m", "fairseq_cli.generate", data / "bin", "--user-dir", "resmlp_mt",
            "--path", checkpoint(self.folder(run), updates), "--cpu", "--batch-size", 32,
            "--required-batch-size-multiple", 1, "--skip-invalid-size-inputs-valid-test",
            "--gen-subset", subset, *options,
        ]  # fmt: skip
        self.execute(command, output, append=False)

    def text(self, name: str, test: int) -> tuple[list[str], list[str]]:
        """Source and target of a test set, as they were given."""
        declared, folder = self.config["sets"][name], self.work / name / "text"
        source, target = (
            (folder / f"test{test or ''}.{declared[side]}").read_text(encoding="utf-8")
            for side in ("source", "target")
        )
        return source.removesuffix("\n").split("\n"), target.removesuffix("\n").split("\n")

    def execute(self, command: list[object], log: Path, append: bool = True) -> float:
        """Run a command, its output in ``log``; returns processor seconds."""
        log.parent.mkdir(parents=True, exist_ok=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with log.open("a" if append else "w") as output:
            subprocess.run(
                [str(word) for word in command], cwd=ROOT, env=self.environment(),
                stdout=output, stderr=subprocess.STDOUT, check=True,
            )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def environment(self) -> dict[str, str]:
        """The environment of all commands: threads, and settings of the allocator."""
        tunables = {"hugetlb": 1, "mmap_threshold": 33554432, "trim_threshold": 2147483648}
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(self.config["threads"]),
            "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={v}" for name, v in tunables.items()),
        }


def read_config(path: Path) -> Json:
    """A config, completed from the file that it inherits from; it may list sets of that file."""
    own: Json = yaml.safe_load(path.read_text())
    inherited = own.pop("inherit", None)
    if inherited is None:
        return own
    base = read_config(path.parent / inherited)
    if isinstance(own.get("sets"), list):
        own["sets"] = {name: base["sets"][name] for name in own["sets"]}
    return base | own


def once(path: Path, make: Callable[[], Json]) -> Json:
    """The result of ``make()``, computed when ``path`` does not hold it yet."""
    if not path.exists():
        write_text(path, json.dumps(make(), indent=1, ensure_ascii=False))
    result: Json = json.loads(path.read_text())
    return result


def values(options: list[str]) -> dict[str, list[str]]:
    """The values of each option of a command; the last ones of an option that is given twice."""
    found: dict[str, list[str]] = {}
    for word in options:
        if word.startswith("--"):
            found[option := word] = []
        else:
            found[option].append(word)
    return found


def checkpoint(folder: Path, updates: int) -> Path:
    """The checkpoint after so many updates; the last one has no number in its name."""
    (found,) = [*folder.glob(f"checkpoint_*_{updates}.pt")] or [folder / "checkpoint_last.pt"]
    return found


def training_curve(log: Path) -> Json:
    """Parameters, and one row for each validation: updates, processor seconds, loss, perplexity.

    A training that was cut off logs some updates again; the last row counts.
    """
    text = log.read_text()
    (parameters,) = set(re.findall(r"num\. shared model params: ([\d,]+)", text))
    seconds = {int(row["num_updates"]): row["seconds"] for row in rows(text, "clock")}
    losses = {int(row["valid_num_updates"]): row for row in rows(text, "valid")}
    return {
        "parameters": int(parameters.replace(",", "")),
        "curve": [
            {
                "updates": updates,
                "seconds": seconds[updates],
                "valid_loss": float(losses[updates]["valid_loss"]),
                "valid_ppl": float(losses[updates]["valid_ppl"]),
            }
            for updates in sorted(seconds)
        ],
    }


def rows(log: str, kind: str) -> Iterator[Json]:
    """The JSON lines of one kind in a log of fairseq."""
    marker = f" | {kind} | {{"
    for line in log.splitlines():
        if marker in line:
            yield json.loads("{" + line.split(marker)[1])
