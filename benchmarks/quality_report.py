"""Writes the tables and the plots of quality.py from the finished runs."""

import datetime
import json
import logging
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import sacrebleu
import sentencepiece
import torch
from fairseq import __version__ as fairseq_version

from benchmarks.quality_runs import HERE, Json, Run, Workshop, values
from benchmarks.readme import command_line, write_block
from resmlp_mt.files import replacing, write_text
from resmlp_mt.machine import processor
from resmlp_mt.scoring.measures import Measure, length_scores

SAMPLES = 1000  # samples of the paired bootstrap
logging.getLogger("matplotlib").setLevel(logging.WARNING)  # below fairseq's root logger


def write(workshop: Workshop, out: Path) -> None:
    """Translate and score with all trained models, and write a .json, .md and .png.

    They are named after the config. The README shows the tables of quality.yaml. A set without
    finished runs keeps the tables of the report that is there.
    """
    config, name = workshop.config, workshop.name
    groups = []
    for set_name, declared in config["sets"].items():
        for budget in declared["budgets"]:
            group = one_set(workshop, set_name, budget)
            if not any(group["trained"].values()):
                group = earlier_set(workshop, out / f"{name}.json", group)
            groups.append(group)
    result = {"config": config, "sets": groups}
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{name}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(out / f"{name}.md", page(result, name))
    if out == HERE and name == "quality":
        write_block(name, summary(result))
    plot(result, out / f"{name}.png")
    plot_lengths(result, out / f"{name}_lengths.png")
    print((out / f"{name}.md").read_text())


def earlier_set(workshop: Workshop, path: Path, group: Json) -> Json:
    """The same set and budget in an earlier report; ``group`` itself where there is none.

    Raises:
        SystemExit: Its trainings had other options than the config.
    """
    groups: list[Json] = json.loads(path.read_text())["sets"] if path.exists() else []
    for earlier in groups:
        if (earlier["set"], earlier["budget"]) != (group["set"], group["budget"]):
            continue
        if earlier["generate"] != group["generate"]:
            raise SystemExit(
                f"{path} has translations of {group['set']} with other options than "
                f"{workshop.name}.yaml: run the set again, or take it out of the file."
            )
        for model, logs in earlier["trained"].items():
            for seed, log in zip(earlier["seeds"][model], logs, strict=True):
                run = Run(model, earlier["set"], seed, earlier["budget"])
                known = model in workshop.config["models"]
                if not known or values(log["options"]) != values(workshop.options(run)):
                    raise SystemExit(
                        f"{path} has a training of {run.set}/{run.name} with other options than "
                        f"{workshop.name}.yaml: run the set again, or take it out of the file."
                    )
        return earlier
    return group


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fairseq": fairseq_version,
        "sacrebleu": sacrebleu.__version__,
        "sentencepiece": sentencepiece.__version__,
    }


def one_set(workshop: Workshop, name: str, budget: int) -> Json:
    """Everything about one set and budget: curves, scores and comparisons."""
    config = workshop.config
    finished = {
        model: [
            run
            for seed in config["seeds"]
            if workshop.is_trained(run := Run(model, name, seed, budget))
        ]
        for model in config["models"]
    }
    trained = {model: [workshop.train(run) for run in runs] for model, runs in finished.items()}
    result: Json = {
        "set": name,
        "budget": budget,
        "generate": config["sets"][name].get("generate", ""),
        "machine": f"{processor()}, {config['threads']} thread(s)",
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "seeds": {model: [run.seed for run in runs] for model, runs in finished.items()},
        "trained": trained,
        "tables": [],
    }
    result["tuning"] = [
        {"model": model, "changed": " ".join(run.extra), **workshop.train(run)["curve"][-1]}
        for model in config["models"]
        for run in workshop.tuning(name, model, budget)
        if workshop.is_trained(run)
    ]
    logs = [log for member in trained.values() for log in member]
    if not logs:
        return result
    every = config["save_every"]
    common = min(log["curve"][-1]["updates"] for log in logs) // every * every
    for at, updates in (("time", None), ("updates", common)):
        if updates == 0:
            continue  # a run has not reached the first checkpoint
        for test, test_name in enumerate(config["sets"][name]["tests"]):
            rows = scored(workshop, finished, test, updates)
            result["tables"].append({"at": at, "updates": updates, "test": test_name, "rows": rows})
    return result


def scored(
    workshop: Workshop, finished: dict[str, list[Run]], test: int, updates: int | None
) -> list[Json]:
    """A row for each model: scores by seed, of all seeds together, and against the baseline.

    Args:
        updates: updates of the checkpoints; None for the last ones.
    """

    def lines(run: Run) -> list[str]:
        curve = workshop.train(run)["curve"]
        return workshop.translate(run, updates or curve[-1]["updates"], test)

    rows: list[Json] = []
    for model, runs in finished.items():
        baseline = workshop.config["models"][model].get("baseline", workshop.config["baseline"])
        if not runs:
            rows.append({"model": model, "seeds": []})
            continue
        name = runs[0].set
        language = workshop.config["sets"][name]["target"]
        source, target = workshop.text(name, test)
        by_seed = {run.seed: lines(run) for run in runs}
        all_lines = [line for seed in by_seed.values() for line in seed]
        measures = {m: Measure(m, [target], language, {}) for m in ("bleu", "chrf")}
        pooled = {m: Measure(m, [target * len(runs)], language, {}) for m in measures}
        at = [point(workshop.train(run)["curve"], updates) for run in runs]
        row: Json = {
            "model": model,
            "seeds": list(by_seed),
            "updates": [each["updates"] for each in at],
            "seconds": [each["seconds"] for each in at],
            "valid_ppl": [each["valid_ppl"] for each in at],
            "by_seed": {
                m: [measure.score(seed).score for seed in by_seed.values()]
                for m, measure in measures.items()
            },
            "pooled": {m: asdict(measure.score(all_lines)) for m, measure in pooled.items()},
            "by_length": [
                asdict(part)
                for part in length_scores(
                    all_lines,
                    pooled["bleu"].references,
                    source * len(runs),
                    workshop.config["lengths"],
                    pooled["bleu"].arguments,
                )
            ],
        }
        others = [run for run in finished.get(baseline, []) if run.seed in by_seed]
        if model != baseline and others:
            theirs = [line for run in others for line in lines(run)]
            ours = [line for run in others for line in by_seed[run.seed]]
            row["against"] = {
                "baseline": baseline,
                "seeds": [run.seed for run in others],
                **{
                    m: asdict(
                        Measure(m, [target * len(others)], language, {}).compare(
                            theirs, ours, "bs", SAMPLES
                        )
                    )
                    for m in measures
                },
            }
        rows.append(row)
    return rows


def point(curve: Sequence[Json], updates: int | None) -> Json:
    """The row of a curve after some updates; the last one for None."""
    if updates is None:
        return curve[-1]
    return next(row for row in curve if row["updates"] == updates)


def page(result: Json, name: str) -> str:
    """The report in Markdown; ``name`` is that of the config and of the plots."""
    config = result["config"]
    names = {model: declared["name"] for model, declared in config["models"].items()}
    against = names[config["baseline"]]
    for model, declared in config["models"].items():
        if "baseline" in declared:
            against += f" ({names[model]}: against {names[declared['baseline']]})"
    parts = [
        f"# {config['title']}",
        f"Written by `benchmarks/quality.py` from `benchmarks/{name}.yaml`.",
        "Every model trains for the same **processor time of its training** (without validation "
        "and the writing of\ncheckpoints, for every model) on one thread, and its last checkpoint "
        f"translates with beam {config['beam']}. BLEU and chrF\nare of all seeds together; p is of "
        f"a paired bootstrap ({SAMPLES:,} samples) against {against}, over the\n"
        "translations of all seeds that both have. Other programs on the machine lengthen "
        "processor time too,\nso the second table has equal updates. Only validation sets were "
        "used for choices.",
    ]
    for group in result["sets"]:
        parts.append(f"## {group['set']}, {group['budget']} s")
        if not group["tables"]:
            parts.append("Not run.")
            continue
        packages = ", ".join(map(" ".join, group["versions"].items()))
        parts.append(f"{group['machine']}; {packages}; {group['date']}.")
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
            parts += ["### Tuning, on the validation set", tuning_table(group, names)]
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
    parts += ["Signatures: " + ", ".join(signatures) + "." if signatures else "", "## Options"]
    parts.append("All models:\n\n    " + command_line(shlex.split(config["options"])))
    for model, declared in config["models"].items():
        data = ""
        if "teacher" in declared:
            data = f", on the translations of `{declared['teacher']}`"
        elif "samples" in declared:
            data = f", on {declared['samples']} sampled copies"
        parts.append(f"{names[model]}{data}:\n\n    {' '.join(declared['options'].split())}")
    for name_of_set, declared in config["sets"].items():
        own = {"All models": declared.get("options"), **_by_name(declared, names)}
        parts += [
            f"{who} on {name_of_set}, too:\n\n    {text}" for who, text in own.items() if text
        ]
        if declared.get("generate"):
            parts.append(f"fairseq-generate on {name_of_set}, too:\n\n    {declared['generate']}")
    if signatures:
        parts.insert(3, f"![validation perplexity]({name}.png)")
        parts.insert(4, f"![BLEU by source length]({name}_lengths.png)")
    return "\n\n".join(part for part in parts if part) + "\n"


def _by_name(declared: Json, names: dict[str, str]) -> dict[str, str]:
    """The options that models have on one set, by the models' names."""
    own = declared.get("model_options", {})
    return {name: own[model] for model, name in names.items() if model in own}


def summary(result: Json) -> str:
    """The tables at equal time, for the README."""
    config = result["config"]
    names = {model: declared["name"] for model, declared in config["models"].items()}
    lines = [
        "| set, test | model | parameters | seeds | BLEU | chrF | p (BLEU) |",
        "|-|-|-:|-:|-:|-:|-:|",
    ]
    budgets, machines = set(), set()
    for group in result["sets"]:
        for table in group["tables"]:
            if table["at"] != "time":
                continue
            budgets.add(f"{group['budget']:,}")
            machines.add(group["machine"].rpartition(",")[0])
            for row in table["rows"]:
                if not row["seeds"]:
                    continue
                against = row.get("against")
                cells = [
                    f"{group['set']}, {table['test']}",
                    names[row["model"]],
                    f"{group['trained'][row['model']][0]['parameters'] / 1e6:.2f} M",
                    str(len(row["seeds"])),
                    *(f"{row['pooled'][m]['score']:.2f}" for m in ("bleu", "chrf")),
                    f"{against['bleu']['p_value']:.3f}" if against else "",
                ]
                lines.append("| " + " | ".join(cells) + " |")
    if not budgets:
        return "Not run."
    return (
        f"After {' and '.join(sorted(budgets))} s of processor time each, one thread of "
        f"{' or '.join(sorted(machines))}\n([benchmarks/quality.md](benchmarks/quality.md): "
        "curves, equal updates, lengths, signatures; p against the Transformer):\n\n"
        + "\n".join(lines)
    )


def score_table(
    rows: Sequence[Json], names: dict[str, str], seeds: Sequence[int], trained: Json
) -> str:
    """Models with their scores; "not run" where seeds are missing."""
    lines = [
        "| model | parameters | seeds | updates | valid ppl | BLEU | chrF | p (BLEU) | p (chrF) |",
        "|-|-:|-|-:|-:|-:|-:|-:|-:|",
    ]
    for row in rows:
        missing = [str(seed) for seed in seeds if seed not in row["seeds"]]
        if not row["seeds"]:
            lines.append(f"| {names[row['model']]} | | not run | | | | | | |")
            continue
        which = ", ".join(map(str, row["seeds"]))
        if missing:
            which += f" ({', '.join(missing)} not run)"
        against = row.get("against")
        cells = [
            names[row["model"]],
            f"{trained[row['model']][0]['parameters'] / 1e6:.2f} M",
            which,
            mean(row["updates"], 0),
            mean(row["valid_ppl"], 2),
            f"{row['pooled']['bleu']['score']:.2f}",
            f"{row['pooled']['chrf']['score']:.2f}",
            *(f"{against[m]['p_value']:.3f}" if against else "" for m in ("bleu", "chrf")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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


def tuning_table(group: Json, names: dict[str, str]) -> str:
    """Validation perplexity with changed options; seed 1."""
    lines = ["| model | changed | updates | valid ppl |", "|-|-|-:|-:|"]
    plain = [
        {"model": model, "changed": "as in the config", **logs[0]["curve"][-1]}
        for model, logs in group["trained"].items()
        if logs
    ]
    for row in sorted([*plain, *group["tuning"]], key=lambda row: row["model"]):
        lines.append(
            f"| {names[row['model']]} | {row['changed']} | {row['updates']} | "
            f"{row['valid_ppl']:.2f} |"
        )
    return "\n".join(lines)


def plot(result: Json, path: Path) -> None:
    """Validation perplexity against processor time and against updates, a row for each set."""
    groups = [group for group in result["sets"] if any(group["trained"].values())]
    if not groups:
        return
    figure, grid = plt.subplots(
        len(groups), 2, figsize=(10, 4 * len(groups)), squeeze=False, layout="constrained"
    )
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
        axes[0].legend(frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def label(result: Json, model: str) -> str:
    """The name of a model as plain text."""
    return str(result["config"]["models"][model]["name"]).replace("`", "")


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
    figure, grid = plt.subplots(
        high, wide, figsize=(5 * wide, 4 * high), squeeze=False, layout="constrained"
    )
    for ax in grid.flat[len(tables) :]:
        ax.remove()
    for ax, (title, rows) in zip(grid.flat, tables, strict=False):
        for index, row in enumerate(rows):
            buckets = [part["bucket"] for part in row["by_length"]]
            scores = [part["score"] for part in row["by_length"]]
            ax.plot(buckets, scores, "o-", color=f"C{index}", label=label(result, row["model"]))
        ax.set(title=title, xlabel="source tokens", ylabel="BLEU", ylim=(0, None))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
