"""The page and the plots of quality.py, made from the numbers of its .json file alone."""

import logging
import math
import shlex
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.quality_runs import SAMPLES, Json
from benchmarks.readme import command_line
from resmlp_mt.files import replacing

logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq's root logger takes all

# The checkpoint of a training that translates, by the rule of its table.
CHOSEN = {
    "best": "the checkpoint with the lowest validation loss",
    "last": "its last checkpoint",
}


def names_of(config: Json) -> dict[str, str]:
    """The names that readers see, by model."""
    return {
        model: declared["name"] + (" (removed)" if declared.get("removed") else "")
        for model, declared in config["models"].items()
    }


def page(result: Json, name: str) -> str:
    """The report in Markdown; ``name`` is that of the config and of the plots."""
    config = result["config"]
    names = names_of(config)
    against = names[config["baseline"]]
    ran = [group for group in result["sets"] if group["tables"]]
    # groups of one page follow one rule; "last" is that of pages from before
    chosen = CHOSEN[next((group.get("checkpoint", "last") for group in ran), "best")]
    for model, declared in config["models"].items():
        if "baseline" in declared:
            against += f" ({names[model]}: against {names[declared['baseline']]})"
    parts = [
        f"# {config['title']}",
        f"Written by `benchmarks/quality.py` from `benchmarks/{name}.yaml`.",
        "Every model trains for the same **processor time of its training** (without validation "
        "and the writing of\ncheckpoints, for every model) on one thread, and "
        f"{chosen} translates with beam {config['beam']}. BLEU and chrF\n"
        "are of all seeds together. "
        f"Differences and p (paired bootstrap, {SAMPLES:,} samples) are against {against},\n"
        "over the seeds that both have. p covers the choice of sentences, not that of seeds or "
        "checkpoints: see BLEU by seed.\nOther programs on the machine lengthen processor time "
        "too, so the second table has equal updates. Learning\nrates and dropout were chosen on "
        "a validation set; what plus is made of was judged on test sets too.",
    ]
    if any(declared.get("removed") for declared in config["models"].values()):
        parts.append(
            "Models that are called removed were tried and are not in the package. Their rows "
            "cannot be made again."
        )
    for group in result["sets"]:
        parts.append(f"## {group['set']}, {group['budget']} s")
        if not group["tables"]:
            parts.append("Not run.")
            continue
        packages = ", ".join(map(" ".join, group["versions"].items()))
        parts.append(f"Reported {group['date']}: {group['machine']}; {packages}.")
        for table in group["tables"]:
            at = f"{table['updates']} updates" if table["updates"] else f"{group['budget']} s"
            parts += [
                f"### {table['test']}, after {at}",
                score_table(table["rows"], names, config["seeds"], group["trained"]),
            ]
        last = [table for table in group["tables"] if table["at"] == "time"]
        for table in last:
            text = length_table(table["rows"], names)
            if text:
                parts += [f"BLEU by source tokens, {table['test']}:", text]
        if group["tuning"]:
            parts += [
                "### Tuning, on the validation set",
                grid_points(group, config),
                tuning_table(group, names, config["save_every"]),
            ]
    signatures = sorted(
        {
            f"{row['pooled'][m]['name']} `{row['pooled'][m]['signature']}`"
            for group in result["sets"]
            for table in group["tables"]
            for row in table["rows"]
            if row["seeds"]
            for m in ("bleu", "chrf")
        }
    )
    parts += ["Signatures: " + ", ".join(signatures) + "." if signatures else ""]
    parts += options(config, {(group["set"], group["generate"]) for group in result["sets"]})
    if signatures:
        parts.insert(3, f"![validation perplexity]({name}.png)")
        parts.insert(4, f"![BLEU by source length]({name}_lengths.png)")
    return "\n\n".join(part for part in parts if part) + "\n"


def options(config: Json, generate: Collection[tuple[str, str]]) -> list[str]:
    """The section with the options of all models and sets.

    Args:
        generate: sets, and the options of fairseq-generate that their translations had.
    """
    names = names_of(config)
    every = f"{config['options']} --warmup-updates {config['warmup_updates']}"
    parts = ["## Options", "All models:\n\n    " + command_line(shlex.split(every))]
    for model, declared in config["models"].items():
        data = ""
        if "teacher" in declared:
            data = f", on the translations of `{declared['teacher']}`"
        elif "samples" in declared:
            data = f", on {declared['samples']} sampled copies"
        elif "concatenate" in declared:
            data = f", on data of `prepare --concatenate {declared['concatenate']}`"
        parts.append(f"{names[model]}{data}:\n\n    {' '.join(declared['options'].split())}")
    for name, declared in config["sets"].items():
        if declared.get("options"):
            parts.append(f"All models on {name}, too:\n\n    {declared['options']}")
        parts += [
            f"fairseq-generate on {name}, too:\n\n    {text}"
            for of, text in sorted(generate)
            if of == name and text
        ]
    return parts


def summary(results: Sequence[Json]) -> str:
    """The tables of reports at equal time, for the README, with the differences at equal updates.

    A model that several reports have on one test set has the row of the first.
    """
    lines = [
        "| set, test | model | parameters | seeds | BLEU | chrF | BLEU difference (p) "
        "| after equal updates (p) |",
        "|-|-|-:|-:|-:|-:|-:|-:|",
    ]
    rows: dict[tuple[str, str], dict[str, str]] = {}  # by set and test, then by model
    budgets, machines = set(), set()
    for result in results:
        names = names_of(result["config"])
        for group in result["sets"]:
            at_updates = {
                (table["test"], row["model"]): row
                for table in group["tables"]
                if table["at"] == "updates"
                for row in table["rows"]
            }
            for table in group["tables"]:
                if table["at"] != "time":
                    continue
                budgets.add(f"{group['budget']:,}")
                machines.add(group["machine"].rpartition(",")[0])
                found = rows.setdefault((group["set"], table["test"]), {})
                for row in table["rows"]:
                    if not row["seeds"]:
                        continue
                    cells = [
                        f"{group['set']}, {table['test']}",
                        names[row["model"]],
                        f"{group['trained'][row['model']][0]['parameters'] / 1e6:.2f} M",
                        str(len(row["seeds"])),
                        *(f"{row['pooled'][m]['score']:.2f}" for m in ("bleu", "chrf")),
                        difference(row, "bleu"),
                        difference(at_updates.get((table["test"], row["model"]), {}), "bleu"),
                    ]
                    found.setdefault(row["model"], "| " + " | ".join(cells) + " |")
    if not budgets:
        return "Not run."
    lines += [line for found in rows.values() for line in found.values()]
    return (
        f"After {' and '.join(sorted(budgets))} s of processor time each, one thread of "
        f"{' or '.join(sorted(machines))}\n([benchmarks/quality.md](benchmarks/quality.md) and "
        "[benchmarks/paper.md](benchmarks/paper.md): curves,\nlengths, signatures, all numbers "
        "after equal updates). Difference and p are from the Transformer that was\ntrained beside "
        "the model, over the seeds that both have. Rows with one seed were trained at another "
        "time,\nsome of them on another machine: compare their differences with those of plus, "
        "not their BLEU.\n\n" + "\n".join(lines)
    )


def score_table(
    rows: Sequence[Json], names: dict[str, str], seeds: Sequence[int], trained: Json
) -> str:
    """Models with their scores; "not run" where seeds are missing."""
    lines = [
        "| model | parameters | seeds | updates | valid ppl | BLEU | chrF | BLEU by seed "
        "| BLEU difference (p) | chrF difference (p) |",
        "|-|-:|-|-:|-:|-:|-:|-|-:|-:|",
    ]
    for row in rows:
        missing = [str(seed) for seed in seeds if seed not in row["seeds"]]
        if not row["seeds"]:
            lines.append(f"| {names[row['model']]} | | not run | | | | | | | |")
            continue
        which = ", ".join(map(str, row["seeds"]))
        if missing:
            which += f" ({', '.join(missing)} not run)"
        cells = [
            names[row["model"]],
            f"{trained[row['model']][0]['parameters'] / 1e6:.2f} M",
            which,
            mean(row["updates"], 0),
            mean(row["valid_ppl"], 2),
            f"{row['pooled']['bleu']['score']:.2f}",
            f"{row['pooled']['chrf']['score']:.2f}",
            ", ".join(f"{score:.2f}" for score in row["by_seed"]["bleu"]),
            *(difference(row, metric) for metric in ("bleu", "chrf")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(row: Json, metric: str) -> str:
    """How far a score is above the baseline's on the seeds that both have, and p in brackets."""
    if "against" not in row:
        return ""
    found = row["against"][metric]
    return f"{found['score'] - found['baseline']:+.2f} ({found['p_value']:.3f})"


def mean(values: Sequence[float], digits: int) -> str:
    return f"{sum(values) / len(values):.{digits}f}"


def length_table(rows: Sequence[Json], names: dict[str, str]) -> str:
    """BLEU of the buckets of source length; nothing if there is one bucket."""
    run = [row for row in rows if row["seeds"]]
    buckets = [(part["bucket"], part["sentences"]) for part in run[0]["by_length"]]
    if len(buckets) < 2:
        return ""
    # the numbers of sentences are those of one seed
    heads = [f"{bucket} ({count // len(run[0]['seeds'])})" for bucket, count in buckets]
    lines = ["| model | " + " | ".join(heads) + " |", "|-|" + "-:|" * len(heads)]
    for row in run:
        scores = [f"{part['score']:.2f}" for part in row["by_length"]]
        lines.append(f"| {names[row['model']]} | " + " | ".join(scores) + " |")
    return "\n".join(lines)


def tuning_table(group: Json, names: dict[str, str], every: int) -> str:
    """Validation perplexity with changed options; seed 1.

    Args:
        every: updates between two validations.
    """
    runs = [
        (model, "as in the config", logs[0]["curve"])
        for model, logs in group["trained"].items()
        if logs
    ]
    runs += [(row["model"], row["changed"], row["curve"]) for row in group["tuning"]]
    common = min(curve[-1]["updates"] for _, _, curve in runs) // every * every
    lines = [
        f"| model | changed | updates | lowest valid ppl | after {common} updates |",
        "|-|-|-:|-:|-:|",
    ]
    for model, changed, curve in sorted(runs, key=lambda run: run[0]):
        lowest = min(row["valid_ppl"] for row in curve)
        (then,) = (row["valid_ppl"] for row in curve if row["updates"] == common)
        updates = curve[-1]["updates"]
        lines.append(f"| {names[model]} | {changed} | {updates} | {lowest:.2f} | {then:.2f} |")
    return "\n".join(lines)


def grid_points(group: Json, config: Json) -> str:
    """How many points of each model's grid were run, that of the config among them."""
    names = names_of(config)
    parts = []
    for model, declared in config["models"].items():
        changed = [row for row in group["tuning"] if row["model"] == model]
        run = len(changed) + bool(group["trained"].get(model))
        every = math.prod(len(values) for values in declared["grid"].values())
        if run:
            parts.append(f"{names[model]} {run} of {every}")
    return f"Points of the grid that were run: {'; '.join(parts)}."


def plot(result: Json, path: Path) -> None:
    """Validation perplexity against processor time and against updates, a row for each set."""
    groups = [group for group in result["sets"] if any(group["trained"].values())]
    if not groups:
        return
    figure = Figure(figsize=(10, 4 * len(groups)), layout="constrained")
    grid = figure.subplots(len(groups), 2, squeeze=False)
    for axes, group in zip(grid, groups, strict=True):
        for index, (model, logs) in enumerate(group["trained"].items()):
            name: Any = label(result, model)
            for log in logs:
                ppl = [row["valid_ppl"] for row in log["curve"]]
                for ax, x in zip(axes, ("seconds", "updates"), strict=True):
                    values = [row[x] for row in log["curve"]]
                    ax.plot(values, ppl, "o-", color=f"C{index}", markersize=3, label=name)
                name = None
        axes[0].set(
            title=group["set"], xlabel="processor seconds of training",
            ylabel="validation perplexity", yscale="log",
        )  # fmt: skip
        axes[1].set(xlabel="updates", yscale="log")
        for ax in axes:
            ax.grid(alpha=0.3, which="both")
        axes[1].legend(frameon=False, loc="upper right", fontsize="small")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def label(result: Json, model: str) -> str:
    """The name of a model as plain text, in lines for a legend."""
    return textwrap.fill(names_of(result["config"])[model].replace("`", ""), 36)


def plot_lengths(result: Json, path: Path) -> None:
    """BLEU against the length of the source, one plot for each test set of several buckets."""
    tables = [
        (f"{group['set']}, {table['test']}", [row for row in table["rows"] if row["seeds"]])
        for group in result["sets"]
        for table in group["tables"]
        if table["at"] == "time"
    ]
    if not tables:
        return
    wide = min(3, len(tables))
    high = -(-len(tables) // wide)
    figure = Figure(figsize=(5 * wide, 5 * high), layout="constrained")
    grid = figure.subplots(high, wide, squeeze=False)
    for ax in grid.flat[len(tables) :]:
        ax.remove()
    for ax, (title, rows) in zip(grid.flat, tables, strict=False):
        for index, row in enumerate(rows):
            buckets = [part["bucket"] for part in row["by_length"]]
            scores = [part["score"] for part in row["by_length"]]
            ax.plot(buckets, scores, "o-", color=f"C{index}", label=label(result, row["model"]))
        ax.set(title=title, xlabel="source tokens", ylabel="BLEU", ylim=(0, None))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15))
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
