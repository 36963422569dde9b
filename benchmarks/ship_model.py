"""The English-German model that comes with the project, and fairseq's Transformer beside it.

    python -m benchmarks.ship_model --data DIR --work DIR [--models plus]
    python -m benchmarks.ship_model --data DIR --work DIR --report

Trains what ship_model.yaml says, on a GPU if there is one; an interrupted run continues. A
training has a trunk, whose learning rate falls with the inverse square root of the updates, for
the processor seconds of the longest budget; on a GPU, those of the process that drives it. At every
budget a branch leaves it, with a learning rate that falls linearly to 0 (a "cooldown"); its last
checkpoint is the model of that budget. The longest training of the shipped model is exported to
--models-dir, in the place of what is there, with a model card. Writes ship_model.json and
ship_model.md beside this file.
"""

import argparse
import datetime
import json
import shlex
import shutil
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch

from benchmarks.model_card import card
from benchmarks.quality_report import versions
from benchmarks.quality_runs import HERE, ROOT, Json, Run, Workshop, once, training_curve
from benchmarks.readme import command_line, write_block
from resmlp_mt.command_line import command
from resmlp_mt.files import write_text
from resmlp_mt.machine import processor
from resmlp_mt.scoring.measures import Measure, length_scores

SET = "tatoeba_en_de"
NEVER = 10**6


class Trainings(Workshop):
    """The trainings and translations of ship_model.yaml."""

    def train(self, run: Run) -> Json:
        """The branch at a budget, after the trunk up to that point."""
        return once(self.folder(run) / "train.json", lambda: self._branch(run))

    def _options(self, run: Run) -> list[object]:
        every = self.config["save_every"]
        return [
            sys.executable, "benchmarks/processor_time.py", self.prepared(run.set) / "bin",
            *self.options(run), "--save-interval-updates", every, "--validate-interval-updates",
            every, "--no-epoch-checkpoints", "--keep-interval-updates", 1,
            "--validate-interval", NEVER, "--save-interval", NEVER,
        ]  # fmt: skip

    def _trunk(self, run: Run) -> Json:
        """Train with an inverse square root schedule until the budget is used up."""
        folder = self.work / run.set / f"trunk-{run.model}"

        def measure() -> Json:
            command = [
                *self._options(run), "--lr-scheduler", "inverse_sqrt",
                "--lr", self.config["models"][run.model]["lr"],
                "--warmup-updates", self.config["warmup_updates"],
                "--save-dir", folder, "--stop-time-hours", run.budget / 3600,
            ]  # fmt: skip
            self.execute(command, folder / "train.log")
            return training_curve(folder / "train.log")

        return once(folder / f"trunk-{run.budget}.json", measure)

    def _branch(self, run: Run) -> Json:
        """Let the learning rate fall to 0, from where the trunk has come to."""
        trunk, folder = self._trunk(run), self.folder(run)
        share = self.config["cooldown"]
        peak = float(self.config["models"][run.model]["lr"])
        end, rate = cooldown(
            peak, self.config["warmup_updates"], trunk["curve"][-1]["updates"], share
        )
        log = folder / "train.log"
        command = [
            *self._options(run), "--save-dir", folder, "--max-update", end,
            "--lr-scheduler", "polynomial_decay", "--total-num-update", end,
            "--lr", rate,
        ]  # fmt: skip
        if not (folder / "checkpoint_last.pt").exists():
            last = self.work / run.set / f"trunk-{run.model}" / "checkpoint_last.pt"
            command += ["--restore-file", last, "--reset-lr-scheduler"]
        self.execute(command, log)
        curve = training_curve(log)
        return {
            "machine": machine(), "options": self.options(run), "trunk": trunk["curve"], **curve
        }  # fmt: skip

    def options(self, run: Run) -> list[str]:
        """Those of fairseq-train that trunk and branch share."""
        found = super().options(run)
        at = found.index("--warmup-updates")
        device = "gpu" if torch.cuda.is_available() else "cpu"
        own = shlex.split(self.config["device_options"][device])
        return own + found[:at] + found[at + 2 :]


def machine() -> str:
    """What trains."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def cooldown(peak: float, warmup: int, start: int, share: float) -> tuple[int, float]:
    """The last update of a branch, and its --lr for fairseq's ``polynomial_decay``.

    fairseq's line has --lr at update 0 and 0 at the end. So that it goes through the rate of
    ``inverse_sqrt`` at ``start``, --lr is larger than that.
    """
    end = round(start * (1 + share))
    rate = peak * (warmup / start) ** 0.5
    return end, rate * end / (end - start)


def scores(lines: list[str], source: list[str], target: list[str], config: Json) -> Json:
    """BLEU and chrF of translations, and BLEU by source length."""
    measures = {m: Measure(m, [target], "de", {}) for m in ("bleu", "chrf")}
    bleu = measures["bleu"]
    parts = length_scores(lines, bleu.references, source, config["lengths"], bleu.arguments)
    return {
        **{m: asdict(measure.score(lines)) for m, measure in measures.items()},
        "by_length": [asdict(part) for part in parts],
    }


def export(trainings: Trainings, run: Run, folder: Path) -> None:
    """Write the last checkpoint as a model folder in int8, in the place of an earlier one."""
    if folder.exists():
        shutil.rmtree(folder)
    data = trainings.prepared(run.set)
    command = [
        sys.executable, "-m", "resmlp_mt.export", trainings.folder(run) / "checkpoint_last.pt",
        "--output", folder, "--dtype", "int8", "--data", data / "bin",
        "--sentencepiece-model", data / "spm.model", "--shortlist", data / "bin",
    ]  # fmt: skip
    trainings.execute(command, trainings.folder(run) / "export.log")


def translate(trainings: Trainings, run: Run, folder: Path, beam: int) -> list[str]:
    """Translations of the test set by the exported folder."""
    output = trainings.folder(run) / f"exported-{beam}.txt"
    command = [
        sys.executable, "-m", "resmlp_mt.translate", folder, "--threads", 1, "--beam", beam,
        "--input", trainings.work / run.set / "text/test.en", "--output", output,
    ]  # fmt: skip
    trainings.execute(command, trainings.folder(run) / "translate.log")
    return output.read_text(encoding="utf-8").splitlines()


def _lines(trainings: Trainings, split: str) -> int:
    """The pairs of a split, as they were given."""
    with (trainings.work / SET / "text" / f"{split}.en").open("rb") as file:
        return sum(1 for _ in file)


def report(trainings: Trainings, models_dir: Path) -> Json:
    """Scores of all that is trained, and of the model that is shipped."""
    config = trainings.config
    source, target = trainings.text(SET, 0)
    result: Json = {
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "config": config,
        "set": SET,
        "pairs": {split: _lines(trainings, split) for split in ("train", "test")},
        "runs": [],
        "shipped": None,
    }
    lines: dict[str, list[str]] = {}
    for budget, model in product(config["budgets"], config["models"]):
        run = Run(model, SET, config["seed"], budget)
        if not trainings.is_trained(run):
            result["runs"].append({"model": model, "budget": budget})
            continue
        trained = trainings.train(run)
        end = trained["curve"][-1]
        lines[run.name] = trainings.translate(run, end["updates"], 0)
        row = {
            "model": model, "budget": budget, "machine": trained["machine"],
            "options": trained["options"], "parameters": trained["parameters"], **end,
            **scores(lines[run.name], source, target, config),
        }  # fmt: skip
        result["runs"].append(row)
        ours = lines.get(Run("plus", SET, config["seed"], budget).name)
        if model == "transformer" and ours:
            row["p_value"] = {
                m: Measure(m, [target], "de", {}).compare(lines[run.name], ours, "bs", 1000).p_value
                for m in ("bleu", "chrf")
            }
    shipped = Run(config["shipped"]["model"], SET, config["seed"], config["shipped"]["budget"])
    if trainings.is_trained(shipped):
        folder = models_dir / "en-de"
        export(trainings, shipped, folder)
        result["shipped"] = {
            "bytes": sum(path.stat().st_size for path in folder.iterdir()),
            "beams": {
                beam: scores(translate(trainings, shipped, folder, beam), source, target, config)
                for beam in (1, config["beam"])
            },
        }
    return result


def table(result: Json) -> str:
    """A row for each training."""
    names = {model: declared["name"] for model, declared in result["config"]["models"].items()}
    rows = [
        "| model | parameters | processor s | updates | valid ppl | BLEU | chrF | p (BLEU) |",
        "|-|-:|-:|-:|-:|-:|-:|-:|",
    ]
    for run in result["runs"]:
        if "bleu" not in run:
            rows.append(f"| {names[run['model']]} | | {run['budget']} + | not run | | | | |")
            continue
        p = f"{run['p_value']['bleu']:.3f}" if "p_value" in run else ""
        rows.append(
            f"| {names[run['model']]} | {run['parameters'] / 1e6:.2f} M | {run['seconds']:.0f} | "
            f"{run['updates']:,} | {run['valid_ppl']:.2f} | {run['bleu']['score']:.2f} | "
            f"{run['chrf']['score']:.2f} | {p} |"
        )
    return "\n".join(rows)


def machines(result: Json) -> str:
    """What trained."""
    return ", ".join(sorted({run["machine"] for run in result["runs"] if "machine" in run}))


def summary(result: Json) -> str:
    """For the README."""
    return (
        "Tatoeba English-German, the recipe of the model that comes with the package, trained on "
        f"one {machines(result)}\n([benchmarks/ship_model.md](benchmarks/ship_model.md); one seed, "
        "validation set):\n\n" + table(result)
    )


def page(result: Json) -> str:
    """The report in Markdown."""
    config = result["config"]
    parts = [
        "# The model that comes with the project: English-German",
        f"Trained on one {machines(result)}; exported and scored with "
        f"{', '.join(map(' '.join, result['versions'].items()))}; "
        f"{result['date']}.\nWritten by `benchmarks/ship_model.py` from `ship_model.yaml`.",
        "Both models are trained on Tatoeba, side by side, for the same processor time of their\n"
        "processes (validation and the writing of checkpoints left out for both), with the same\n"
        "schedule: an inverse square root for each of the budgets "
        f"{', '.join(map(str, config['budgets']))} s, then {config['cooldown']:.0%} more updates "
        "in\nwhich the learning rate falls to 0. Parameters are about equal. Neither was tuned "
        f"here.\nTatoeba valid, 2,000 sentences; fairseq-generate, beam {config['beam']}; "
        "p of a paired bootstrap, 1,000 samples; one seed.",
        table(result),
    ]
    if result["shipped"] is None:
        parts.append("Nothing was exported yet.")
    else:
        by_length = result["shipped"]["beams"][str(config["beam"])]["by_length"]
        parts += [
            f"## models/en-de: int8, {result['shipped']['bytes'] / 1e6:.1f} MB",
            "\n".join(
                [
                    "| `translate` with | BLEU | chrF |",
                    "|-|-:|-:|",
                    *(
                        f"| --beam {beam} | {s['bleu']['score']:.2f} | {s['chrf']['score']:.2f} |"
                        for beam, s in result["shipped"]["beams"].items()
                    ),
                ]
            ),
            "BLEU by source tokens:\n\n| "
            + " | ".join(f"{part['bucket']} ({part['sentences']})" for part in by_length)
            + " |\n|"
            + "-:|" * len(by_length)
            + "\n| "
            + " | ".join(f"{part['score']:.2f}" for part in by_length)
            + " |",
        ]
    scored = [run for run in result["runs"] if "bleu" in run]
    if scored:
        found = (f"{m} `{scored[0][m]['signature']}`" for m in ("bleu", "chrf"))
        parts.append(f"Signatures: {', '.join(found)}.")
    parts.append("## Options")
    parts += [
        f"{config['models'][run['model']]['name']}:\n\n    "
        + command_line([*run["options"], "--lr", str(config["models"][run["model"]]["lr"])])
        for run in scored
    ]
    return "\n\n".join(parts) + "\n"


@command
def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--models", nargs="+", help="train these only")
    parser.add_argument("--budgets", type=int, nargs="+", help="train these only")
    parser.add_argument("--report", action="store_true", help="train nothing, write the tables")
    parser.add_argument("--models-dir", type=Path, default=ROOT / "models", help="for the export")
    args = parser.parse_args()
    trainings = Trainings(HERE / "ship_model.yaml", args.data, args.work)
    config = trainings.config
    for budget, model in product(
        args.budgets or config["budgets"], args.models or config["models"]
    ):
        if not args.report:
            print(f"{datetime.datetime.now():%H:%M:%S} {model}, {budget} s", flush=True)
            trainings.train(Run(model, SET, config["seed"], budget))
    text = json.dumps(report(trainings, args.models_dir), indent=1, ensure_ascii=False) + "\n"
    write_text(HERE / "ship_model.json", text)
    result = json.loads(text)  # the pages are made from what the file has
    if result["shipped"] is not None:
        write_text(args.models_dir / "en-de" / "README.md", card(result))
    write_text(HERE / "ship_model.md", page(result))
    write_block("ship_model", summary(result))
    print(page(result))


if __name__ == "__main__":
    main()
