"""Scores the finished runs of quality.py, and writes its numbers, its page and its plots."""

import datetime
import json
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import sacrebleu
import sentencepiece
import torch
from fairseq import __version__ as fairseq_version

from benchmarks import quality_page
from benchmarks.quality_runs import HERE, SAMPLES, Json, Run, Workshop, values
from benchmarks.readme import write_block
from resmlp_mt.files import write_text
from resmlp_mt.machine import processor
from resmlp_mt.scoring.measures import Measure, length_scores

SUMMARISED = ("quality", "paper")  # reports whose rows the README has


def write(workshop: Workshop, out: Path) -> None:
    """Translate and score with all trained models, and write a .json, .md and .png.

    They are named after the config. The README shows the tables of SUMMARISED. A set without
    finished runs keeps the tables of the report that is there, also those of models that the
    config no longer has.
    """
    config, name = workshop.config, workshop.name
    written = out / f"{name}.json"
    earlier: Json = json.loads(written.read_text()) if written.exists() else {"sets": []}
    groups = []
    for set_name, declared in config["sets"].items():
        for budget in declared["budgets"]:
            group = one_set(workshop, set_name, budget)
            if not any(group["trained"].values()):
                group = earlier_set(workshop, earlier, group)
            groups.append(group)
    models = config["models"] | removed_models(workshop, earlier, groups)
    result = {"config": config | {"models": models}, "sets": groups}
    out.mkdir(parents=True, exist_ok=True)
    write_text(written, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    page = quality_page.page(result, name)
    write_text(out / f"{name}.md", page)
    if out == HERE and name in SUMMARISED:
        reports = (json.loads((HERE / f"{each}.json").read_text()) for each in SUMMARISED)
        write_block("quality", quality_page.summary([*reports]))
    quality_page.plot(result, out / f"{name}.png")
    quality_page.plot_lengths(result, out / f"{name}_lengths.png")
    print(page)


def earlier_set(workshop: Workshop, earlier: Json, group: Json) -> Json:
    """The same set and budget in an earlier report; ``group`` itself where there is none.

    Raises:
        SystemExit: The config has other options for one of its trainings.
    """
    config, name = workshop.config, workshop.name
    for kept in earlier["sets"]:
        if (kept["set"], kept["budget"]) != (group["set"], group["budget"]):
            continue
        for model in kept["trained"].keys() & config["models"].keys():
            for seed, log in zip(kept["seeds"][model], kept["trained"][model], strict=True):
                run = Run(model, kept["set"], seed, kept["budget"])
                if values(log["options"]) != values(workshop.options(run)):
                    raise SystemExit(
                        f"{name}.json has a training of {run.set}/{run.name} with other options "
                        f"than {name}.yaml: run the set again, or take it out of {name}.json."
                    )
        found: Json = kept
        return found
    return group


def removed_models(workshop: Workshop, earlier: Json, groups: Sequence[Json]) -> Json:
    """Models of kept tables that the config no longer has, with the options of their trainings."""
    config = workshop.config
    removed: Json = {}
    for group in groups:
        own = config["sets"][group["set"]].get("options", "")
        every = f"{config['options']} --warmup-updates {config['warmup_updates']} {own}"
        shared = values(shlex.split(every))
        for model, logs in group["trained"].items():
            if model in config["models"]:
                continue
            removed.setdefault(model, earlier["config"]["models"][model] | {"removed": True})
            for log in logs[:1]:  # its other seeds have the same options
                options = values(log["options"])
                del options["--seed"]
                removed[model]["options"] = shlex.join(
                    word
                    for option, given in options.items()
                    if shared.get(option) != given
                    for word in (option, *given)
                )
    return removed


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
        "checkpoint": "best",
        "generate": config["sets"][name].get("generate", ""),
        "machine": f"{processor()}, {config['threads']} thread(s)",
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "seeds": {model: [run.seed for run in runs] for model, runs in finished.items()},
        "trained": trained,
        "tables": [],
    }
    result["tuning"] = [
        {
            "model": model,
            "changed": " ".join(run.extra),
            "curve": workshop.train(run)["curve"],
        }
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
        updates: the trainings up to so many updates alone; None for the whole ones.
    """

    def lines(run: Run) -> list[str]:
        chosen = best(workshop.train(run)["curve"], updates)
        return workshop.translate(run, chosen["updates"], test)

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
        curves = [workshop.train(run)["curve"] for run in runs]
        chosen = [best(curve, updates) for curve in curves]
        row: Json = {
            "model": model,
            "seeds": list(by_seed),
            "updates": [updates or curve[-1]["updates"] for curve in curves],
            "checkpoints": [each["updates"] for each in chosen],
            "valid_ppl": [each["valid_ppl"] for each in chosen],
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


def best(curve: Sequence[Json], updates: int | None = None) -> Json:
    """The row of a curve with the lowest validation loss, up to so many updates."""
    reached = [row for row in curve if updates is None or row["updates"] <= updates]
    return min(reached, key=lambda row: row["valid_loss"])
