"""The benchmark of translation quality: its clock, its runs, its pooled scores and its tables."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from sacrebleu.significance import PairedTest

from benchmarks import processor_time, quality_page, quality_report, quality_runs
from benchmarks.quality_runs import Run, Workshop
from benchmarks.readme import README, write_block
from conftest import ROOT, Corpus

CONFIG = ROOT / "benchmarks/quality.yaml"
SOURCE = ["a b c", "d e f g h i j k l m n", "one two"]
TARGET = ["Ein Hund läuft schnell .", "Zwei Katzen schlafen heute auf dem Sofa .", "Ja , gut so ."]
GOOD = [[*TARGET[:2], "Nein , gut so ."], TARGET]
BAD = [["Ein Hund schläft .", *TARGET[1:]], ["Hund", "Zwei Katzen schlafen", "Ja"]]


class Done(Workshop):
    """Two seeds of two models, one of them not finished; 300 and 310 updates."""

    def __init__(self, folder: Path) -> None:
        super().__init__(CONFIG, folder, folder)
        first = next(iter(self.config["sets"]))
        self.config |= {"seeds": [1, 2], "sets": {first: self.config["sets"][first]}}

    def is_trained(self, run: Run) -> bool:
        return run.model in ("plus", "transformer") and not run.extra

    def train(self, run: Run) -> dict[str, Any]:
        last = 310 if run.model == "plus" else 300
        curve = [
            {"updates": n, "seconds": 2.0 * n, "valid_loss": 900 / n, "valid_ppl": 10000 / n}
            for n in sorted({150, 300, last})
        ]
        return {"parameters": 1_500_000, "options": self.options(run), "curve": curve}

    def translate(self, run: Run, updates: int, test: int) -> list[str]:
        return (GOOD if run.model == "plus" else BAD)[run.seed - 1]

    def text(self, name: str, test: int) -> tuple[list[str], list[str]]:
        return SOURCE, TARGET


@pytest.fixture
def result(tmp_path: Path) -> dict[str, Any]:
    quality_report.write(Done(tmp_path), tmp_path)
    written: dict[str, Any] = json.loads((tmp_path / "quality.json").read_text())
    return written


def test_scores_are_sacrebleus_of_all_seeds_together(result: dict[str, Any]) -> None:
    at_time, at_updates = result["sets"][0]["tables"]
    plus, transformer = at_time["rows"][:2]
    for row, outputs in ((plus, GOOD), (transformer, BAD)):
        joined = outputs[0] + outputs[1]
        for name, metric in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())):
            expected = metric.corpus_score(joined, [TARGET * 2]).score
            assert row["pooled"][name]["score"] == expected
            assert row["by_seed"][name] == [
                metric.corpus_score(each, [TARGET]).score for each in outputs
            ]
    joined = [("baseline", BAD[0] + BAD[1]), ("system", GOOD[0] + GOOD[1])]
    _, scores = PairedTest(
        joined, {"BLEU": sacrebleu.BLEU(references=[TARGET * 2])}, None, "bs", 1000
    )()
    assert plus["against"]["bleu"]["p_value"] == scores["BLEU"][1].p_value
    assert plus["against"]["seeds"] == [1, 2]
    assert [part["bucket"] for part in plus["by_length"]] == ["0-10", "11-20"]
    assert plus["updates"] == [310, 310]
    assert at_updates["updates"] == 300
    assert at_updates["rows"][0]["checkpoints"] == [300, 300]


def test_the_checkpoint_of_the_lowest_validation_loss_translates(tmp_path: Path) -> None:
    """Those after the updates of a table do not count for it."""
    done, translated = Done(tmp_path), set()
    curve = [
        {"updates": n, "seconds": 2.0 * n, "valid_loss": loss, "valid_ppl": 2**loss}
        for n, loss in ((150, 3.0), (300, 3.5), (450, 2.0), (510, 2.5))
    ]
    done.train = lambda run: {"parameters": 1, "options": done.options(run), "curve": curve}

    def translate(run: Run, updates: int, test: int) -> list[str]:
        translated.add(updates)
        return TARGET

    done.translate = translate
    runs = {"plus": [Run("plus", "multi30k_en_de", 1, 600)]}
    for most, expected in ((None, 450), (450, 450), (300, 150)):
        translated.clear()
        (row,) = quality_report.scored(done, runs, 0, most)
        assert translated == {expected}
        assert (row["updates"], row["checkpoints"]) == ([most or 510], [expected])
        assert row["valid_ppl"] == [4.0 if expected == 450 else 8.0]


def test_a_page_from_before_says_that_the_last_checkpoint_translated(
    result: dict[str, Any],
) -> None:
    best, last = "the checkpoint with the lowest validation loss", "its last checkpoint"
    assert f"{best} translates with beam 4" in quality_page.page(result, "quality")
    del result["sets"][0]["checkpoint"]
    assert f"{last} translates with beam 4" in quality_page.page(result, "quality")


def test_what_was_not_run_is_said(tmp_path: Path) -> None:
    done = Done(tmp_path)
    done.config["seeds"] = [1, 2, 3]
    done.is_trained = lambda run: run.model == "plus" and run.seed < 3 and not run.extra
    quality_report.write(done, tmp_path)
    text = (tmp_path / "quality.md").read_text()
    assert "| ResMLP plus | 1.50 M | 1, 2 (3 not run) | 310 |" in text
    assert "| Transformer | | not run |" in text
    done.is_trained = lambda run: False
    quality_report.write(done, tmp_path / "empty")
    assert "Not run." in (tmp_path / "empty/quality.md").read_text()


def test_a_set_without_runs_keeps_the_tables_that_are_there(
    tmp_path: Path, result: dict[str, Any]
) -> None:
    written = (tmp_path / "quality.md").read_text()
    done = Done(tmp_path)
    done.is_trained = lambda run: False
    quality_report.write(done, tmp_path)
    assert json.loads((tmp_path / "quality.json").read_text()) == result
    assert (tmp_path / "quality.md").read_text() == written
    done.config["models"]["plus"]["options"] += " --dropout 0.7"
    with pytest.raises(SystemExit, match="multi30k_en_de/plus-1-600 with other options"):
        quality_report.write(done, tmp_path)
    assert json.loads((tmp_path / "quality.json").read_text()) == result


def test_a_set_without_runs_names_the_options_that_its_translations_had(tmp_path: Path) -> None:
    done = Done(tmp_path)
    done.config["sets"]["multi30k_en_de"]["generate"] = "--max-len-b 10"
    quality_report.write(done, tmp_path)
    done.is_trained = lambda run: False
    done.config["sets"]["multi30k_en_de"]["generate"] = "--max-len-b 20"
    quality_report.write(done, tmp_path)
    text = (tmp_path / "quality.md").read_text()
    assert "fairseq-generate on multi30k_en_de, too:\n\n    --max-len-b 10\n" in text
    assert "--max-len-b 20" not in text


def test_models_that_the_config_no_longer_has_keep_their_tables_and_options(
    tmp_path: Path, result: dict[str, Any]
) -> None:
    row = next(
        line
        for line in (tmp_path / "quality.md").read_text().splitlines()
        if line.startswith("| ResMLP plus | 1.50 M")
    )
    done = Done(tmp_path)
    done.is_trained = lambda run: False
    del done.config["models"]["plus"]
    # what all models have now is not what the removed one had
    done.config["options"] += " --dropout 0.7"
    for _ in range(2):  # the second one reads what the first one wrote
        quality_report.write(done, tmp_path)
        text = (tmp_path / "quality.md").read_text()
        assert row.replace("ResMLP plus", "ResMLP plus (removed)") in text
        options = text.partition("\nResMLP plus (removed):\n\n    ")[2].partition("\n")[0]
        assert quality_runs.values(options.split()) == {
            "--arch": ["resmlp_mt_plus_6l"],
            "--mixing-heads": ["4"],
            "--lr": ["4e-3"],
            "--dropout": ["0.05"],
        }
    written = json.loads((tmp_path / "quality.json").read_text())
    assert written["sets"] == result["sets"]


@pytest.mark.parametrize(
    "name",
    ["quality", "paper", "gate", "variants", "training_options", "few_pairs", "distillation"],
)
def test_every_page_is_what_its_numbers_and_its_config_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """No page needs its runs to be written again."""
    config = CONFIG.with_stem(name)
    for plot in ("plot", "plot_lengths"):
        monkeypatch.setattr(quality_report.quality_page, plot, lambda *_: None)
    shutil.copy(config.with_suffix(".json"), tmp_path)
    quality_report.write(Workshop(config, tmp_path, tmp_path), tmp_path)
    for suffix in (".md", ".json"):
        written = (tmp_path / config.with_suffix(suffix).name).read_text()
        assert written == config.with_suffix(suffix).read_text()


def test_the_readme_has_the_rows_of_all_reports_each_model_once(result: dict[str, Any]) -> None:
    paper = json.loads(json.dumps(result).replace('"plus"', '"faithful"'))
    paper["config"]["models"]["faithful"]["name"] = "ResMLP (paper)"
    rows = quality_page.summary([result, paper]).splitlines()[-3:]
    assert [row.split(" | ")[1] for row in rows] == ["ResMLP plus", "Transformer", "ResMLP (paper)"]
    assert rows[2].replace("ResMLP (paper)", "ResMLP plus") == rows[0]
    assert rows[:2] == quality_page.summary([result]).splitlines()[-2:]


def test_a_log_that_goes_on_counts_its_last_rows(tmp_path: Path) -> None:
    def rows(updates: int, seconds: float, loss: float) -> str:
        valid = {"valid_num_updates": str(updates), "valid_loss": str(loss), "valid_ppl": "9.5"}
        clock = {"num_updates": str(updates), "seconds": seconds}
        return f"t | INFO | valid | {json.dumps(valid)}\nt | INFO | clock | {json.dumps(clock)}\n"

    begin = "t | INFO | fairseq_cli.train | num. shared model params: 1,234 (num. trained: 1,234)\n"
    log = tmp_path / "train.log"
    log.write_text(begin + rows(2, 1.0, 8.0) + rows(4, 2.0, 7.0) + begin + rows(4, 2.5, 6.5))
    assert quality_runs.training_curve(log) == {
        "parameters": 1234,
        "curve": [
            {"updates": 2, "seconds": 1.0, "valid_loss": 8.0, "valid_ppl": 9.5},
            {"updates": 4, "seconds": 2.5, "valid_loss": 6.5, "valid_ppl": 9.5},
        ],
    }


def test_the_clock_stands_still_in_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(processor_time.time, "process_time", lambda: now[0])
    clock = processor_time.TrainingClock()

    def seven_seconds() -> str:
        now[0] += 7
        assert clock.time() == 10.0
        return "done"

    assert clock.without(seven_seconds) == "done"
    now[0] += 2
    assert clock.time() == 12.0


def test_both_systems_have_the_same_grid_and_fit_the_same_data() -> None:
    config, paper = (quality_runs.read_config(CONFIG.with_stem(n)) for n in ("quality", "paper"))
    common = [
        {o: v for o, v in model["grid"].items() if o != "--layer-scale-init"}
        for model in (config["models"] | paper["models"]).values()
    ]
    assert len(common) == 4
    assert all(grid == common[0] for grid in common)
    for declared in config["sets"].values():
        read = [*declared["train"], *declared["valid"]]
        for parts in declared["tests"].values():
            read += [parts] if isinstance(parts, str) else parts
        assert len(set(read)) == len(read)


@pytest.mark.parametrize(
    "config", ["variants", "training_options", "few_pairs", "distillation", "length_text", "gate"]
)
def test_a_variant_differs_from_its_baseline_in_one_respect(config: str) -> None:
    names = "quality", "paper", config
    quality, paper, changed = (quality_runs.read_config(CONFIG.with_stem(n)) for n in names)
    assert changed["options"] == quality["options"]
    known = quality["models"] | paper["models"]
    models = changed["models"].values()
    baselines = {model.get("baseline", changed["baseline"]) for model in models}
    for name, model in changed["models"].items():
        own = quality_runs.values(model["options"].split())
        if name in known:
            assert own == quality_runs.values(known[name]["options"].split())
        if name in known or name in baselines:
            continue
        baseline = changed["models"][model.get("baseline", changed["baseline"])]
        plain = quality_runs.values(baseline["options"].split())
        others = {option for option in own | plain if own.get(option) != plain.get(option)}
        if model.keys() & {"samples", "concatenate", "teacher"}:
            assert not others
        else:
            assert len(others - {"--rdrop-alpha"}) == 1


def commands_of(
    config: str, models: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[list[str]]:
    """The commands that prepare the data of some models (on a set each) and train them."""
    workshop = Workshop(CONFIG.with_stem(config), folder, folder)
    commands: list[list[str]] = []

    def execute(command: list[object], log: Path) -> float:
        commands.append([str(word) for word in command])
        begin = "t | INFO | fairseq_cli.train | num. shared model params: 1 (num. trained: 1)\n"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(begin)
        return 0.0

    monkeypatch.setattr(workshop, "execute", execute)
    monkeypatch.setattr(workshop, "_pairs", lambda *_: [("a\n", "b\n")])
    for model, name in models.items():
        workshop.train(Run(model, name, 1, 600))
    return commands


def test_a_model_may_train_on_sampled_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = dict.fromkeys(("plus_d15", "plus_samples"), "multi30k_en_de")
    plain, plain_training, sampled, training = commands_of(
        "training_options", models, tmp_path, monkeypatch
    )
    folder = tmp_path.resolve() / "multi30k_en_de"
    assert "--samples" not in plain
    assert sampled[sampled.index("--samples") + 1] == "8"
    assert plain_training[2] == f"{folder}/data/bin"
    copies = ["bin", *(f"bin{copy}" for copy in range(2, 9))]
    assert training[2] == ":".join(f"{folder}/data-8-samples/{copy}" for copy in copies)


def test_a_model_may_train_on_joined_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = dict.fromkeys(("plus", "plus_joined"), "mix_short_en_de")
    plain, plain_training, joined, training = commands_of(
        "length_text", models, tmp_path, monkeypatch
    )
    assert "--concatenate" not in plain
    assert joined[joined.index("--concatenate") + 1] == "3"
    folder = tmp_path.resolve() / "mix_short_en_de"
    assert plain_training[2] == f"{folder}/data/bin"
    assert training[2] == f"{folder}/data-3-joined/bin"


def test_a_model_may_train_on_the_translations_of_a_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = Workshop(CONFIG.with_stem("distillation"), tmp_path, tmp_path)
    commands: list[list[str]] = []

    def execute(command: list[object], log: Path) -> None:
        words = [str(word) for word in command]
        commands.append(words)
        if "resmlp_mt.translate" in words:
            Path(words[words.index("--output") + 1]).write_text("taught\n")

    monkeypatch.setattr(workshop, "execute", execute)
    monkeypatch.setattr(workshop, "_pairs", lambda *_: [("a\n", "b\n")])
    data = workshop.prepared("tatoeba_en_de", "student_taught")
    translate, prepare = commands
    folder = tmp_path.resolve() / "tatoeba_en_de"
    assert data == folder / "data-taught-en-de"
    assert str(folder / "text" / "train.en") in translate
    assert str(folder / "text-taught-en-de") in prepare
    taught = {path.name: path.read_text() for path in (folder / "text-taught-en-de").iterdir()}
    given = {path.name: path.read_text() for path in (folder / "text").iterdir()}
    assert taught == given | {"train.de": "taught\n"}


def test_splits_are_joined_halved_and_cut_by_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    for language in ("en", "de"):
        for name, count in (("train", 6), ("valid", 5)):
            with gzip.open(tmp_path / f"a/{name}.{language}.gz", "wt") as file:
                file.writelines(f"{language}{name}" + " x" * n + "\n" for n in range(count))
    workshop = Workshop(CONFIG, tmp_path, tmp_path)
    monkeypatch.setattr(workshop, "execute", lambda *_: 0.0)
    workshop.config["sets"] = {
        "s": {
            "source": "en", "target": "de", "vocabulary": 50,
            "most_source_tokens": 3, "most_pairs": 2,
            "train": ["a/train"], "valid": ["a/valid:first"],
            "tests": {"one": "a/valid:second", "two": ["a/valid:second", "a/train"]},
        }
    }  # fmt: skip
    workshop.prepared("s")
    text = {path.name: path.read_text().splitlines() for path in (tmp_path / "s/text").iterdir()}
    for language in ("en", "de"):
        counts = {name: len(lines) for name, lines in text.items() if name.endswith(language)}
        assert counts == {f"train.{language}": 2, f"valid.{language}": 2, f"test.{language}": 3,
                          f"test1.{language}": 9}  # fmt: skip
    assert text["valid.de"] == ["devalid", "devalid x"]
    assert workshop.text("s", 1)[0][-1] == "entrain x x x x x"


def test_a_training_stops_after_its_budget_and_is_translated(
    corpus: Corpus, tmp_path: Path
) -> None:
    """2 processor seconds, a checkpoint every update; the clock goes on in the checkpoint."""
    workshop = Workshop(CONFIG, tmp_path, tmp_path)
    workshop.config |= {"save_every": 10, "beam": 1}
    workshop.config["sets"] = {"digits": {"source": "en", "target": "de", "tests": {"digits": ""}}}
    prepared = tmp_path / "digits/data"
    prepared.mkdir(parents=True)
    (prepared / "bin").symlink_to(corpus.data)
    (prepared / "manifest.json").write_text("{}")
    text = tmp_path / "digits/text"
    text.mkdir()
    for language in ("en", "de"):
        lines = "\n".join(corpus.sentences("test", language)) + "\n"
        (text / f"test.{language}").write_text(lines)
    run = Run("plus", "digits", 1, 2, ("--max-tokens", "300"))
    last = workshop.train(run)["curve"][-1]
    state = torch.load(workshop.folder(run) / "checkpoint_last.pt", weights_only=True)
    assert state["optimizer_history"][-1]["num_updates"] == last["updates"] > 0
    assert last["seconds"] > run.budget
    assert state["extra_state"]["previous_training_time"] >= last["seconds"]
    lines = workshop.translate(run, last["updates"], 0)
    assert len(lines) == len(corpus.sentences("test", "en"))


def test_a_script_replaces_its_block_of_the_readme_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    block = "<!-- written by benchmarks/{0}.py -->\n{1}\n<!-- end of {0} -->\n"
    readme.write_text("a\n" + block.format("x", "old\nold") + "b\n" + block.format("y", "kept"))
    write_block("x", "new\n", readme)
    assert readme.read_text() == (
        "a\n" + block.format("x", "new") + "b\n" + block.format("y", "kept")
    )
    with pytest.raises(ValueError, match="unpack"):
        write_block("z", "new", readme)


def test_the_readme_has_the_block_of_every_script_that_writes_one() -> None:
    text = README.read_text(encoding="utf-8")
    for script in (ROOT / "benchmarks").glob("*.py"):
        for name in re.findall(r'write_block\("(\w+)"', script.read_text(encoding="utf-8")):
            assert name == script.stem.removesuffix("_report")
            assert text.count(f"<!-- written by benchmarks/{name}.py -->\n") == 1
            assert text.count(f"<!-- end of {name} -->\n") == 1


def test_the_page_has_the_points_of_the_grid_that_were_run(tmp_path: Path) -> None:
    done = Done(tmp_path)
    done.is_trained = lambda run: (
        run.model in ("plus", "transformer") and run.extra in ((), ("--lr", "2e-3"))
    )
    quality_report.write(done, tmp_path)
    text = (tmp_path / "quality.md").read_text()
    assert "Points of the grid that were run: ResMLP plus 2 of 18; Transformer 2 of 9.\n" in text
    assert (
        "| model | changed | updates | lowest valid ppl | after 300 updates |\n"
        "|-|-|-:|-:|-:|\n"
        "| ResMLP plus | as in the config | 310 | 32.26 | 33.33 |\n"
        "| ResMLP plus | --lr 2e-3 | 310 | 32.26 | 33.33 |\n"
        "| Transformer | as in the config | 300 | 33.33 | 33.33 |\n"
        "| Transformer | --lr 2e-3 | 300 | 33.33 | 33.33 |\n"
    ) in text


def test_the_grid_leaves_out_what_the_model_has(tmp_path: Path) -> None:
    workshop = Workshop(CONFIG, tmp_path, tmp_path)
    found = {run.extra for run in workshop.tuning("multi30k_en_de", "transformer", 600)}
    rates = [(), ("--lr", "2e-3"), ("--lr", "4e-3")]  # the model has 6e-3
    dropouts = [(), ("--dropout", "0.1"), ("--dropout", "0.15")]  # and 0.05
    assert found == {rate + dropout for rate in rates for dropout in dropouts} - {()}


def test_a_training_with_other_options_is_not_taken_for_this_one(tmp_path: Path) -> None:
    workshop = Workshop(CONFIG, tmp_path, tmp_path)
    run = Run("plus", "multi30k_en_de", 1, 600)
    finished = workshop.folder(run) / "train.json"
    (tmp_path / "multi30k_en_de/data").mkdir(parents=True)
    (tmp_path / "multi30k_en_de/data/manifest.json").touch()
    finished.parent.mkdir()
    reordered = ["--seed", "1", *workshop.options(run)]
    finished.write_text(json.dumps({"options": reordered}))
    assert workshop.train(run) == {"options": reordered}
    finished.write_text(json.dumps({"options": [*reordered, "--dropout", "0.3"]}))
    with pytest.raises(SystemExit, match="other options"):
        workshop.train(run)
