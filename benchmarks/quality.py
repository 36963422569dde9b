"""Compares translations of ResMLP and of fairseq's Transformer after equal processor time.

    python -m benchmarks.quality --data DIR --work DIR
    python -m benchmarks.quality --data DIR --work DIR --sets multi30k_en_de --models plus
    python -m benchmarks.quality --data DIR --work DIR --report

quality.yaml beside this file has the models, sets, seeds and budgets. Without options all of them
are run, one after the other. Finished parts are kept in --work, an interrupted training continues
from its last checkpoint, and the tables say "not run" for missing runs.
Writes quality.json, quality.md and quality.png beside this file.

Budgets are seconds of the training's processor time (processor_time.py). A busy machine changes it
less than wall-clock time, but two threads on one core slow each other down. So compare runs of one
quiet machine, and look at the equal updates too.
"""

import argparse
import datetime
from itertools import product
from pathlib import Path

from benchmarks import quality_report
from benchmarks.quality_runs import HERE, Run, Workshop


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--config", type=Path, default=HERE / "quality.yaml")
    parser.add_argument("--models", nargs="+", help="run these only")
    parser.add_argument("--sets", nargs="+", help="run these only")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of the config")
    parser.add_argument("--budgets", type=int, nargs="+", help="the same, in seconds")
    parser.add_argument("--tune", action="store_true", help="run the grid, for validation alone")
    parser.add_argument("--report", action="store_true", help="train nothing, write the tables")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the tables")
    args = parser.parse_args()
    workshop = Workshop(args.config, args.data, args.work)
    config = workshop.config
    config["seeds"] = args.seeds or config["seeds"]  # the tables have those of this call
    for declared in config["sets"].values():
        declared["budgets"] = args.budgets or declared["budgets"]
    for name in args.sets or config["sets"]:
        for budget, seed, model in product(
            config["sets"][name]["budgets"], config["seeds"], args.models or config["models"]
        ):
            runs = [Run(model, name, seed, budget)]
            if args.tune:
                runs = workshop.tuning(name, model, budget) if seed == 1 else []
            for run in [] if args.report else runs:
                print(f"{datetime.datetime.now():%H:%M:%S} {name}/{run.name}", flush=True)
                workshop.train(run)
    quality_report.write(workshop, args.out)


if __name__ == "__main__":
    main()
