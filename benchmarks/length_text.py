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
from itertools import pairwise, product
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from benchmarks.quality_page import names_of, options
from benchmarks.quality_report import best, versions
from benchmarks.quality_runs import HERE, Json, Run, Workshop, checkpoint, once
from resmlp_mt.command_line import command
from resmlp_mt.files import replacing, write_text
from resmlp_mt.visualization.matrices import a_of, matrices, read_checkpoint, state_dict

BORDERS = (1, 11, 21, 31, 46, 61, 101)  # source tokens, by white space
LABELS = [f"{low}-{following - 1}" for low, following in pairwise(BORDERS)]
TRAINED = LABELS.index("21-30")  # the longest range of lengths that the training has
DISTANCES = (1, 11, 21, 31, 41, 51, 61, 81)


def reference_scores(workshop: Workshop, run: Run, updates: int) -> dict[int, list[float]]:
    """Logarithms to base 2 of the probabilities of the reference's tokens, by sentence.

    Sentences that are longer than the model allows are missing.
    """
    folder = workshop.folder(run)

    def measure() -> Json:
        output = folder / f"test-{updates}-references.txt"
        workshop.generate(run, updates, "test", output, "--score-reference")
        found = re.findall(r"^P-(\d+)\t(.*)$", output.read_text(), re.MULTILINE)
        return {number: [float(each) for each in scores.split()] for number, scores in found}

    scores = once(folder / f"test-{updates}-references.json", measure)
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


def measured(workshop: Workshop, name: str, trained_only: bool) -> Json:
    """Perplexities of each model over all its seeds, and weights by distance.

    After the whole trainings, and after as many updates as every training has made. The
    checkpoint with the lowest validation loss until then is measured.

    Args:
        trained_only: leave out trainings that are not there, rather than make them.
    """
    budget = workshop.config["sets"][name]["budgets"][0]
    runs: dict[str, list[Run]] = {}
    for model, seed in product(workshop.config["models"], workshop.config["seeds"]):
        run = Run(model, name, seed, budget)
        if not trained_only or workshop.is_trained(run):
            runs.setdefault(model, []).append(run)
    curves = {run: workshop.train(run)["curve"] for each in runs.values() for run in each}
    every = workshop.config["save_every"]
    common = min((curve[-1]["updates"] for curve in curves.values()), default=0) // every * every
    source, _ = workshop.text(name, 0)

    def row(model: str, updates: int | None) -> Json:
        # sentences of all seeds together
        pooled = {
            index * len(source) + number: values
            for index, run in enumerate(runs[model])
            for number, values in reference_scores(
                workshop, run, best(curves[run], updates)["updates"]
            ).items()
        }
        return {
            "model": model,
            "seeds": [run.seed for run in runs[model]],
            "updates": [updates or curves[run][-1]["updates"] for run in runs[model]],
            "perplexity": perplexities(pooled, source * len(runs[model])),
        }

    def last(run: Run) -> Path:
        return checkpoint(workshop.folder(run), curves[run][-1]["updates"])

    return {
        "tables": [
            {"updates": updates, "rows": [row(model, updates) for model in runs]}
            for updates in (None, common)
            if updates != 0  # a run has not reached the first checkpoint
        ],
        "weights": {model: weights_by_distance(last(own[0])) for model, own in runs.items()},
    }


def page(result: Json) -> str:
    """The tables in Markdown."""
    config = result["config"]
    names = names_of(config)
    parts = [
        f"# {config['title']}",
        f"{result['date']}; {', '.join(map(' '.join, result['versions'].items()))}.\n"
        "Written by `benchmarks/length_text.py`. The checkpoint with the lowest validation loss is "
        "measured.",
        "![perplexity by source length](length_text.png)",
        "Dashed: with joined pairs. Lines that leave the picture go on in the tables.",
    ]
    for name, group in result["sets"].items():
        distances = [f"{low}-{high - 1}" for low, high in pairwise(DISTANCES)]
        parts.append(f"## {name}: trained on at most {group['most']} source tokens")
        for entry in group["tables"]:
            parts += [
                f"### {after(group, entry).capitalize()}",
                "Perplexity of the references, by source tokens. In brackets: how many times as\n"
                f"high as at {LABELS[TRAINED]} tokens.",
                table(
                    ["model", "seeds", "updates", *LABELS],
                    [cells(names[row["model"]], row) for row in entry["rows"]]
                    + [
                        [names[model], "not run", *[""] * (len(LABELS) + 1)]
                        for model in config["models"]
                        if model not in group["weights"]
                    ],
                ),
            ]
        parts += [
            "### Weights",
            "Weights of the encoder's mixing by distance in subwords (root mean square over layers "
            "and heads), in the last checkpoint of the first seed.\n"
            "They start at 0.02, times the decay.",
            table(
                ["model", *distances],
                [
                    [names[model], *(f"{value:.4f}" for value in weights)]
                    for model, weights in group["weights"].items()
                    if weights
                ],
            ),
        ]
    return "\n\n".join([*parts, *options(config, ())]) + "\n"


def after(group: Json, entry: Json) -> str:
    """How long the trainings of a table are."""
    return f"after {entry['updates']} updates" if entry["updates"] else f"after {group['budget']} s"


def cells(name: str, row: Json) -> list[str]:
    """A row of the table: the mean of the seeds' updates, and perplexities with their ratios."""
    found = row["perplexity"]
    return [
        name,
        ", ".join(map(str, row["seeds"])),
        f"{mean(row['updates']):.0f}",
        *(
            "" if value is None else f"{value:.1f} ({value / found[TRAINED]:.2f})"
            for value in found
        ),
    ]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["-", *["-:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(result: Json, path: Path) -> None:
    """Perplexity against source length, for each table.

    Dashed: the same model with joined pairs. The picture ends at a few times the highest perplexity
    of the baseline: a line that leaves it has its numbers in the table.
    """
    config = result["config"]
    names, models = names_of(config), config["models"]
    tables = [
        (f"{name}, {after(group, entry)}", entry)
        for name, group in result["sets"].items()
        for entry in group["tables"]
    ]
    figure, grid = plt.subplots(
        1, len(tables), figsize=(6 * len(tables), 5), squeeze=False, layout="constrained"
    )
    colours = {model: f"C{number}" for number, model in enumerate(models)}
    for ax, (title, entry) in zip(grid[0], tables, strict=True):
        for row in entry["rows"]:
            declared = models[row["model"]]
            is_joined = "concatenate" in declared
            like = declared.get("baseline", config["baseline"]) if is_joined else row["model"]
            label = names[row["model"]].replace("`", "")
            style = {"color": colours[like], "linestyle": "--" if is_joined else "-"}
            ax.plot(LABELS, row["perplexity"], marker="o", label=label, **style)
        found = {row["model"]: [p for p in row["perplexity"] if p] for row in entry["rows"]}
        highest = max(map(max, found.values()))
        most = 3 * max(found.get(config["baseline"], [highest]))
        lowest = min(map(min, found.values()))
        ax.set(title=title, xlabel="source tokens", ylabel="perplexity of references", yscale="log")
        ax.set_ylim(0.8 * lowest, min(1.2 * highest, most))
        ax.grid(alpha=0.3, which="both")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
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
                **measured(workshop, name, args.report),
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
