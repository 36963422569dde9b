"""Sentences longer than those of the training: perplexity of reference translations by length.

    python -m benchmarks.length_text --data DIR --work DIR
    python -m benchmarks.length_text --data DIR --work DIR --report

Trains the models of length_text.yaml where --work does not hold them yet, ten minutes of processor
time each; with --report, it trains none. Writes length_text.json, .md and .png beside this file. A
finished training with other options than the config has is refused.

The perplexity of the references (fairseq-generate --score-reference) tells models apart that are
still too weak for BLEU.
"""

import argparse
import datetime
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from benchmarks.quality_page import names_of, options
from benchmarks.quality_report import versions
from benchmarks.quality_runs import HERE, Json, Run, Workshop, checkpoint, once
from resmlp_mt.command_line import command
from resmlp_mt.files import replacing, write_text
from resmlp_mt.visualization.matrices import a_of, matrices, read_checkpoint, state_dict

BORDERS = (1, 11, 21, 31, 46, 61, 101)  # source tokens, by white space
DISTANCES = (1, 11, 21, 31, 41, 51, 61, 81)


def reference_scores(workshop: Workshop, run: Run, test: int) -> dict[int, list[float]]:
    """Logarithms to base 2 of the probabilities of the reference's tokens, by sentence.

    Sentences that are longer than the model allows are missing.
    """
    folder, updates = workshop.folder(run), workshop.train(run)["curve"][-1]["updates"]
    subset = f"test{test or ''}"

    def measure() -> Json:
        output = folder / f"{subset}-references.txt"
        workshop.generate(run, updates, subset, output, "--score-reference")
        found = re.findall(r"^P-(\d+)\t(.*)$", output.read_text(), re.MULTILINE)
        return {number: [float(each) for each in scores.split()] for number, scores in found}

    scores = once(folder / f"{subset}-references.json", measure)
    return {int(number): values for number, values in scores.items()}


def perplexities(scores: dict[int, list[float]], sources: Sequence[str]) -> list[float | None]:
    """The perplexity of each bucket of source lengths; None for an empty one."""
    result: list[float | None] = []
    for low, following in pairwise(BORDERS):
        chosen = [
            score
            for number, values in scores.items()
            if low <= len(sources[number].split()) < following
            for score in values
        ]
        result.append(2 ** (-sum(chosen) / len(chosen)) if chosen else None)
    return result


def weights_by_distance(path: Path) -> list[float] | None:
    """Root mean square of the encoder's weights in each range of distances, over layers and heads.

    None for a Transformer.
    """
    state = state_dict(read_checkpoint(path), str(path))
    if not any("token_mixing" in name for name in state):
        return None
    layers = matrices(state, str(path), DISTANCES[-1])["encoder"]
    found = torch.stack([matrix for layer in layers for matrix in a_of(layer).values()])
    positions = torch.arange(found.size(1))
    distances = (positions[:, None] - positions).abs()
    return [
        found[:, (low <= distances) & (distances < high)].square().mean().sqrt().item()
        for low, high in pairwise(DISTANCES)
    ]


def measured(workshop: Workshop, name: str, trained_only: bool) -> list[Json]:
    """A row for each model: perplexities over all seeds, and weights by distance.

    Args:
        trained_only: leave out models whose trainings are not there, rather than train them.
    """
    budget = workshop.config["sets"][name]["budgets"][0]
    rows = []
    for model in workshop.config["models"]:
        runs = [Run(model, name, seed, budget) for seed in workshop.config["seeds"]]
        if trained_only and not all(map(workshop.is_trained, runs)):
            continue
        # sentences of all seeds together
        scores = [reference_scores(workshop, run, 0) for run in runs]
        source, _ = workshop.text(name, 0)
        pooled = {
            seed * len(source) + number: values
            for seed, each in enumerate(scores)
            for number, values in each.items()
        }
        curve = workshop.train(runs[0])["curve"]
        rows.append(
            {
                "model": model,
                "seeds": [run.seed for run in runs],
                "updates": curve[-1]["updates"],
                "perplexity": perplexities(pooled, source * len(runs)),
                "weights": weights_by_distance(
                    checkpoint(workshop.folder(runs[0]), curve[-1]["updates"])
                ),
            }
        )
    return rows


def page(result: Json) -> str:
    """The tables in Markdown."""
    config = result["config"]
    names = names_of(config)
    parts = [
        f"# {config['title']}",
        f"{result['date']}; {', '.join(map(' '.join, result['versions'].items()))}.\n"
        "Written by `benchmarks/length_text.py`.",
        "![perplexity by source length](length_text.png)",
    ]
    for name, group in result["sets"].items():
        missing = config["models"].keys() - {row["model"] for row in group["rows"]}
        lengths = [f"{low}-{following - 1}" for low, following in pairwise(BORDERS)]
        distances = [f"{low}-{high - 1}" for low, high in pairwise(DISTANCES)]
        parts += [
            f"## {name}: trained on at most {group['most']} source tokens",
            f"Perplexity of the references, by source tokens; {group['budget']} processor seconds "
            "of training.",
            table(
                ["model", "seeds", "updates", *lengths],
                [
                    [names[row["model"]], ", ".join(map(str, row["seeds"])), str(row["updates"]),
                     *("" if value is None else f"{value:.1f}" for value in row["perplexity"])]
                    for row in group["rows"]
                ]
                + [
                    [names[model], "not run", *[""] * (len(lengths) + 1)]
                    for model in config["models"]
                    if model in missing
                ],
            ),
            "Weights of the encoder's mixing by distance in subwords (root mean square over layers "
            "and heads).\nThey start at 0.02, times the decay.",
            table(
                ["model", *distances],
                [
                    [names[row["model"]], *(f"{value:.4f}" for value in row["weights"])]
                    for row in group["rows"]
                    if row["weights"]
                ],
            ),
        ]  # fmt: skip
    return "\n\n".join([*parts, *options(config, ())]) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["-", *["-:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(result: Json, path: Path) -> None:
    """Perplexity against source length."""
    groups, names = result["sets"], names_of(result["config"])
    figure, grid = plt.subplots(
        1, len(groups), figsize=(6 * len(groups), 4), squeeze=False, layout="constrained"
    )
    labels = [f"{low}-{following - 1}" for low, following in pairwise(BORDERS)]
    for ax, (name, group) in zip(grid[0], groups.items(), strict=True):
        for row in group["rows"]:
            ax.plot(labels, row["perplexity"], "o-", label=names[row["model"]].replace("`", ""))
        ax.set(title=name, xlabel="source tokens", ylabel="perplexity of references", yscale="log")
        ax.grid(alpha=0.3, which="both")
        ax.legend(frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


@command
def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--report", action="store_true", help="train nothing, write the tables")
    args = parser.parse_args()
    workshop = Workshop(HERE / "length_text.yaml", args.data, args.work)
    config = workshop.config
    result: Json = {
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "config": config,
        "sets": {
            name: {
                "most": declared["most_source_tokens"],
                "budget": declared["budgets"][0],
                "rows": measured(workshop, name, args.report),
            }
            for name, declared in config["sets"].items()
        },
    }
    write_text(HERE / "length_text.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(HERE / "length_text.md", page(result))
    plot(result, HERE / "length_text.png")
    print(page(result))


if __name__ == "__main__":
    main()
