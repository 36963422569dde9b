"""Checkpoints and exported folders of release 0.1.0 still load, with the outputs that it recorded.

It was trained by fairseq-train with that release: 2 + 2 layers, dim 32, digits to reversed digits.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from safetensors.torch import load_file, save_file

from resmlp_mt.engine import compact, model_folder
from resmlp_mt.engine.folding import empty
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.translator import Translator
from resmlp_mt.engine.weights import prepared
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import checkpoints
from resmlp_mt.fairseq_plugin.conversion import load_trained
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures
from resmlp_mt.packed_linear import quantize

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


@pytest.mark.parametrize("names", [["old", "new"], ["new", "old", "new"], ["old", "old"]])
def test_checkpoints_before_and_after_an_upgrade_are_averaged(
    tmp_path: Path, names: list[str]
) -> None:
    """That release did not know the longest sentence."""
    state = torch.load(FOLDER / "checkpoint.pt")
    assert "encoder.longest_trained" not in state["model"]
    torch.save(state, tmp_path / "old.pt")
    state["model"]["encoder.longest_trained"] = torch.tensor(7)
    torch.save(state, tmp_path / "new.pt")
    found = checkpoints.average([tmp_path / f"{name}.pt" for name in names])
    torch.save(found, tmp_path / "average.pt")
    load_trained(tmp_path / "average.pt", FOLDER)
    longest = found["model"].pop("encoder.longest_trained", None)
    assert longest is None if "new" not in names else longest == 7
    for name, value in found["model"].items():
        torch.testing.assert_close(value, state["model"][name])


def with_float_embeddings(model: EncoderDecoder) -> EncoderDecoder:
    """The model in int8, but for the embeddings, which that release left as they were."""
    stored = compact.tensors(model, "int8")
    parameters = dict(model.named_parameters())
    for name in [name for name in stored if name.endswith("embed_tokens.weight")]:
        stored[name] = parameters[name].detach()
        del stored[name.replace("weight", "scale")]
    output = f"{compact.PROJECTION}.weight"
    if stored.pop(f"{compact.PROJECTION}.columns", None) is not None:
        stored[output], stored[output.replace("weight", "scale")] = quantize(parameters[output])
    return compact.fill(empty(model.config), stored)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_exported_folders_translate_as_recorded(
    recorded: dict[str, Any], dtype: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """As ``python -m resmlp_mt.export checkpoint.pt`` of that release wrote them."""
    folder = Path(shutil.copytree(FOLDER / "exported", tmp_path / "model"))
    if dtype == "int8":  # as then: the float32 file with its linear layers quantized
        path = folder / model_folder.WEIGHTS
        stored = load_file(path)
        for name in [n for n in stored if re.search(r"(fc\d|_proj|output_projection)\.weight", n)]:
            stored[name], scale = quantize(stored[name])
            stored[name.replace("weight", "scale")] = scale
        save_file(stored, path)
        config = folder / model_folder.CONFIG
        config.write_text(config.read_text().replace("float32", "int8"))
    loaded = model_folder.load(folder)
    assert "has no SHA256SUMS" in caplog.text
    assert "export the model again" in caplog.text
    lines = (FOLDER / "input.en").read_text().splitlines()
    found = Translator(loaded, SearchOptions(beam=4)).translate(lines)
    if dtype == "int8":  # which may translate otherwise than float32 does
        now = load_trained(FOLDER / "checkpoint.pt", FOLDER)
        now.model = with_float_embeddings(now.model)
        expected = Translator(now, SearchOptions(beam=4)).translate(lines)
        pairs = [[(t.text, t.score) for t in sentence] for sentence in expected]
    else:
        pairs = [
            [(t["text"], t["score"]) for t in sentence] for sentence in recorded["translations"]
        ]
    for ours, theirs in zip(found, pairs, strict=True):
        assert [t.text for t in ours] == [text for text, _ in theirs]
        assert [t.score for t in ours] == pytest.approx([score for _, score in theirs], abs=1e-5)


def test_damaged_exported_folders_are_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER / "exported", tmp_path / "model"))
    stored = load_file(folder / model_folder.WEIGHTS)
    for damaged in (
        {name: value for name, value in stored.items() if name != "decoder_mixing"},
        {**stored, "decoder_mixing": stored["decoder_mixing"][:, :-1].contiguous()},
        {**stored, "encoder_layers.7.scale": torch.ones(32)},
        {**stored, "extra": torch.ones(1)},
    ):
        save_file(damaged, folder / model_folder.WEIGHTS)
        with pytest.raises(UserError, match=r"model\.safetensors does not fit config\.json"):
            model_folder.load(folder)


def test_exported_graphs_are_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER / "exported", tmp_path / "model"))
    (folder / model_folder.WEIGHTS).rename(folder / "encoder.onnx")
    with pytest.raises(UserError, match=r"ONNX graphs of resmlp_mt 0\.1\.0.*export") as refused:
        model_folder.load(folder)
    assert "\n" not in str(refused.value)
