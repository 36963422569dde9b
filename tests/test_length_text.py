"""The benchmark of sentences longer than those of the training: its models, numbers and page."""

import json
import math
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import length_text
from benchmarks.quality_runs import HERE, Run, Workshop
from models import build

CONFIG = HERE / "length_text.yaml"
REPORT = HERE / "length_text.json"


def test_perplexity_by_source_length() -> None:
    """Two references of 1 to 10 source tokens, one of 11 to 20; the last one was not scored."""
    sources = ["a b", "c", "d " * 12, "e " * 12]
    scores = {0: [-1.0, -3.0], 1: [-2.0], 2: [-5.0]}
    found = length_text.perplexities(scores, sources)
    assert found[:2] == [2**2, 2**5]
    assert found[2:] == [None] * 4


@pytest.mark.parametrize("mixing", [{}, {"mixing_heads": 2, "mixing_relative": "alone"}])
def test_weights_by_distance(tmp_path: Path, mixing: dict[str, Any]) -> None:
    length = length_text.DISTANCES[-1] + 10
    model = build(max_source_positions=length, **mixing)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pt")
    found = length_text.weights_by_distance(tmp_path / "model.pt")
    squares: dict[int, list[float]] = {}
    for layer in model.encoder.layers:
        matrix = layer.token_mixing.matrix(length_text.DISTANCES[-1]).detach()
        for t, s in product(range(matrix.size(1)), repeat=2):
            squares.setdefault(abs(t - s), []).extend(matrix[:, t, s].square().tolist())
    expected = [
        math.sqrt(sum(values := [x for d in range(low, high) for x in squares[d]]) / len(values))
        for low, high in pairwise(length_text.DISTANCES)
    ]
    assert found == pytest.approx(expected, rel=1e-5)
    torch.save({"model": {"encoder.layers.0.fc1.weight": torch.ones(2)}}, tmp_path / "model.pt")
    assert length_text.weights_by_distance(tmp_path / "model.pt") is None


def test_the_page_is_what_its_numbers_give() -> None:
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    assert length_text.page(report) == REPORT.with_suffix(".md").read_text(encoding="utf-8")


def test_a_training_with_other_options_gets_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = Workshop(CONFIG, tmp_path, tmp_path)
    monkeypatch.setattr(Workshop, "prepared", lambda *_: tmp_path)
    for model in workshop.config["models"]:
        run = Run(model, "mix_short_en_de", 1, 600)
        options = workshop.options(run)
        if model == "no_decay":
            options += ["--lr", "6e-3"]
        folder = workshop.folder(run)
        folder.mkdir(parents=True)
        # the last checkpoint is worse than the one before; plus made the most updates
        losses = {150: 5.0, 300: 3.0 if model == "plus" else 4.0, 350: 6.0}
        curve = [
            {"updates": updates, "seconds": 600.0, "valid_loss": loss, "valid_ppl": 2**loss}
            for updates, loss in list(losses.items())[: 3 if model == "plus" else 2]
        ]
        (folder / "train.json").write_text(json.dumps({"options": options, "curve": curve}))
        for updates, score in {150: -2.0, 300: -1.0, 350: -3.0}.items():
            (folder / f"test-{updates}-references.json").write_text(f'{{"0": [{score}]}}')
    monkeypatch.setattr(Workshop, "text", lambda *_: (["a b"], ["c d"]))
    monkeypatch.setattr(length_text, "weights_by_distance", lambda *_: None)
    workshop.config["seeds"] = [1]
    with pytest.raises(SystemExit, match="no_decay-1-600 has a training with other options"):
        length_text.measured(workshop, "mix_short_en_de", trained_only=False)
    (workshop.work / "mix_short_en_de/no_decay-1-600/train.json").unlink()
    found = length_text.measured(workshop, "mix_short_en_de", trained_only=True)
    whole, equal = found["tables"]
    assert (whole["updates"], equal["updates"]) == (None, 300)
    joined = [f"{model}_joined" for model in ("plus", "transformer", "faithful")]
    assert [(row["model"], row["updates"], row["perplexity"][0]) for row in whole["rows"]] == [
        ("plus", [350], 2.0),
        ("transformer", [300], 2.0),
        ("faithful", [300], 2.0),
        ("no_gate", [300], 2.0),
        *((model, [300], 2.0) for model in joined),
    ]
    assert [row["updates"] for row in equal["rows"]] == [[300]] * 7
    assert list(found["weights"]) == ["plus", "transformer", "faithful", "no_gate", *joined]
