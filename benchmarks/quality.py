"""Translations of ResMLP and of fairseq's Transformer after equal processor time."""

import argparse
import datetime
from itertools import product
from pathlib import Path

from benchmarks.quality_runs import HERE, Run, Workshop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--config", type=Path, default=HERE / "quality.yaml")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--budgets", type=int, nargs="+")
    args = parser.parse_args()
    workshop = Workshop(args.config, args.data, args.work)
    config = workshop.config
    for budget, name, seed, model in product(
        args.budgets or config["budgets"],
        args.sets or config["sets"],
        args.seeds or config["seeds"],
        args.models or config["models"],
    ):
        print(f"{datetime.datetime.now():%H:%M:%S} {name}, {model}, seed {seed}", flush=True)
        workshop.train(Run(model, name, seed, budget))


if __name__ == "__main__":
    main()
