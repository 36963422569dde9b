"""A checkpoint of release 0.1.0 still loads, with the outputs that 0.1.0 recorded.

It was trained by fairseq-train with that release: 2 + 2 layers, dim 32, digits to reversed digits.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils

from resmlp_mt.engine import model_folder
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.translator import Translator
from resmlp_mt.engine.weights import prepared
from resmlp_mt.fairseq_plugin.conversion import load_trained
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures

FOLDER = Path(__file__).parent / "fixtures" / "resmlp_mt_0_1_0"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads((FOLDER / "recorded.json").read_text())


def test_scores_are_those_recorded(recorded: dict[str, Any]) -> None:
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(FOLDER / "checkpoint.pt")], arg_overrides={"data": str(FOLDER)}
    )
    model = models[0].double().eval()
    with torch.no_grad():
        scores, _ = model(
            torch.tensor(recorded["source"]), None, torch.tensor(recorded["previous_output"])
        )
    expected = torch.tensor(recorded["scores"], dtype=torch.float64)
    torch.testing.assert_close(scores, expected, rtol=1e-7, atol=1e-7)  # nine digits


def test_translations_are_those_recorded(recorded: dict[str, Any]) -> None:
    loaded = load_trained(FOLDER / "checkpoint.pt", FOLDER)
    loaded.model = prepared(loaded.model, "float32")
    lines = (FOLDER / "input.en").read_text().splitlines()
    found = Translator(loaded, SearchOptions(beam=4)).translate(lines)
    for ours, expected in zip(found, recorded["translations"], strict=True):
        assert [t.text for t in ours] == [t["text"] for t in expected]
        assert [t.score for t in ours] == pytest.approx([t["score"] for t in expected], abs=1e-5)


def test_a_folder_of_the_release_is_refused_in_one_sentence(tmp_path: Path) -> None:
    config = {"model_type": "resmlp_mt", "dtype": "float32", "encoder_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(model_folder.UserError, match=r"resmlp_mt 0\.1\.0.*resmlp_mt\.export") as e:
        model_folder.load(tmp_path)
    assert "\n" not in str(e.value)
