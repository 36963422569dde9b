"""The English-German model that comes with the project, and fairseq's Transformer beside it.

    python -m benchmarks.ship_model --data DIR --work DIR [--models plus] [--budgets 1500]
    python -m benchmarks.ship_model --data DIR --work DIR --report

Trains what ship_model.yaml says, hours of one core; what was cut off goes on where it stood. A
training has a trunk, whose learning rate falls with the inverse square root of the updates, for
the processor seconds of the longest budget. At every budget a branch leaves it, with a learning
rate that falls linearly to 0 (a "cooldown"); its last checkpoint is the model of that budget. The
longest training of the shipped model is exported to --models-dir. Writes ship_model.json and
ship_model.md beside this file.
"""

import argparse
import datetime
import json
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path

from benchmarks.quality_report import versions
from benchmarks.quality_runs import HERE, Json, Run, Workshop, once, training_curve
from resmlp_mt.files import write_text
from resmlp_mt.machine import processor
from resmlp_mt.scoring.measures import Measure, length_scores

SET = "tatoeba_en_de"
NEVER = 10**6


class Trainings(Workshop):
    """The trainings and translations of ship_model.yaml."""

    def train(self, run: Run) -> Json:
        """The branch at a budget, behind the trunk up to there."""
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
        start = trunk["curve"][-1]["updates"]
        end = round(start * (1 + share))
        rate = float(self.config["models"][run.model]["lr"])
        rate *= (self.config["warmup_updates"] / start) ** 0.5
        log = folder / "train.log"
        command = [
            *self._options(run), "--save-dir", folder, "--max-update", end,
            "--lr-scheduler", "polynomial_decay", "--total-num-update", end,
            # fairseq's line goes through --lr at update 0: so it starts at ``rate``
            "--lr", rate * end / (end - start),
        ]  # fmt: skip
        if not (folder / "checkpoint_last.pt").exists():
            last = self.work / run.set / f"trunk-{run.model}" / "checkpoint_last.pt"
            command += ["--restore-file", last, "--reset-lr-scheduler"]
        self.execute(command, log)
        curve = training_curve(log)
        return {"options": self.options(run), "trunk": trunk["curve"], **curve}

    def options(self, run: Run) -> list[str]:
        """Those of fairseq-train that trunk and branch share."""
        found = super().options(run)
        at = found.index("--warmup-updates")
        return found[:at] + found[at + 2 :]


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--models", nargs="+", help="train these only")
    parser.add_argument("--budgets", type=int, nargs="+", help="train these only")
    parser.add_argument("--report", action="store_true", help="train nothing, write the tables")
    args = parser.parse_args()
    trainings = Trainings(HERE / "ship_model.yaml", args.data, args.work)
    config = trainings.config
    for budget, model in product(
        args.budgets or config["budgets"], args.models or config["models"]
    ):
        if not args.report:
            print(f"{datetime.datetime.now():%H:%M:%S} {model}, {budget} s", flush=True)
            trainings.train(Run(model, SET, config["seed"], budget))


if __name__ == "__main__":
    main()
