"""Exported folders hold what the checkpoint holds, and are refused when they are broken."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT
from models import build, dictionary, padded, sentences
from resmlp_mt import export
from resmlp_mt.engine import model_folder, weights
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.vocabulary import Vocabulary
from resmlp_mt.engine.weights import prepared
from resmlp_mt.errors import UserError
from resmlp_mt.model.config import ACTIVATIONS, LEAST_VALUES
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.packed_linear import Int8Linear, PackedLinear, quantize
from test_folding import relative_error
from test_mixing import MODELS, every_model


def translation(**changes: object) -> TranslationModel:
    """A small model with random parameters, float32."""
    words = Vocabulary(dictionary(20).symbols)
    model = fold(build(**changes).float())
    return TranslationModel(model, "en", "de", words, words, None)


@torch.inference_mode()
def scores(model: EncoderDecoder) -> torch.Tensor:
    """Scores of the tokens of three sentences."""
    return model(padded(sentences([5, 3, 9])), torch.tensor([[2, 5, 6], [2, 9, 4], [2, 7, 8]]))


SHARED = {"share_all_embeddings": True}


@pytest.mark.parametrize("changes", [*MODELS.values(), SHARED], ids=[*MODELS, "shared"])
def test_a_folder_holds_the_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved = translation(**changes)
    model_folder.save(saved, tmp_path / "model")
    loaded = model_folder.load(tmp_path / "model")
    assert loaded.model.config == saved.model.config
    assert (loaded.source_lang, loaded.target_lang) == ("en", "de")
    assert loaded.source.symbols == loaded.target.symbols == saved.source.symbols
    torch.testing.assert_close(scores(loaded.model), scores(saved.model), rtol=1e-5, atol=1e-5)
    assert isinstance(loaded.model.decoder.output_projection, PackedLinear)


@every_model
def test_int8_in_the_file_equals_int8_made_when_loading(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    saved = translation(**changes)
    model_folder.save(saved, tmp_path / "float32")
    model_folder.save(saved, tmp_path / "int8", "int8")
    stored = load_file(tmp_path / "int8" / model_folder.WEIGHTS)
    assert stored["decoder.output_projection.weight"].dtype == torch.int8
    from_file = model_folder.load(tmp_path / "int8").model
    on_loading = model_folder.load(tmp_path / "float32", "int8").model
    assert isinstance(from_file.decoder.kv_proj, Int8Linear)
    torch.testing.assert_close(scores(from_file), scores(on_loading))
    assert relative_error(scores(from_file), scores(saved.model)) < 0.1
    with pytest.raises(UserError, match="holds int8 weights; export it with --dtype float32"):
        model_folder.load(tmp_path / "int8", "float32")


def test_bfloat16_weights_compute_in_float32_where_asked(tmp_path: Path) -> None:
    saved = translation()
    model_folder.save(saved, tmp_path / "model", "bfloat16")
    loaded = model_folder.load(tmp_path / "model", "float32")
    expected = scores(saved.model)
    assert (scores(loaded.model) - expected).norm() < 0.02 * expected.norm()


def test_bfloat16_is_refused_where_the_processor_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder.save(translation(), tmp_path / "model")
    monkeypatch.setattr(weights, "computes_in_bfloat16", lambda: False)
    with pytest.raises(UserError, match="--dtype bfloat16 needs a processor"):
        model_folder.load(tmp_path / "model", "bfloat16")


@pytest.mark.parametrize("least", [None, -1.5])
def test_int8_products_are_within_the_rounding(least: float | None) -> None:
    """Half a step of 63 or 127 for the inputs and of 254 for the weights bound every product."""
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(64, 32)
    x = (3 * torch.randn(2, 5, 64, generator=generator) + 1).clamp_min(-1.5)
    found = Int8Linear(*quantize(linear.weight.detach()), linear.bias.detach(), least)(x)
    error = (found - linear(x)).abs()
    weight = linear.weight.abs()
    step = x.abs().amax(2, keepdim=True) / 63
    if least is not None:
        step = (x.amax(2, keepdim=True) - least) / 127
    bound = 0.5 * step * weight.sum(1)
    bound += 0.5 * weight.amax(1) / 127 * (x.abs() + step).sum(2, keepdim=True)
    assert (error <= bound + 1e-5).all()
    assert error.norm() < 0.02 * linear(x).norm()


@pytest.mark.parametrize("least", [None, 0.0, -0.17])
def test_int8_rows_do_not_depend_on_each_other(least: float | None) -> None:
    linear = torch.nn.Linear(64, 32)
    int8 = Int8Linear(*quantize(linear.weight.detach()), linear.bias.detach(), least)
    x = torch.randn(6, 64) * torch.logspace(-2, 2, 6).unsqueeze(1)
    x = x if least is None else x.clamp_min(least)
    before = x.clone()
    alone = torch.cat([int8(row) for row in x.split(1)])
    torch.testing.assert_close(int8(x), alone, rtol=1e-6, atol=1e-6)
    assert torch.equal(x, before)
    zeros = int8(torch.zeros(1, 64))
    torch.testing.assert_close(zeros[0], linear.bias.detach(), rtol=0, atol=2e-3 if least else 1e-6)


def test_int8_uses_the_least_value_of_each_activation() -> None:
    grid = torch.linspace(-5, 5, 100_001, dtype=torch.float64)
    for name, least in LEAST_VALUES.items():
        assert least <= ACTIVATIONS[name](grid).min() < least + 1e-3
    for name in ACTIVATIONS:
        model = prepared(fold(build(activation_fn=name)), "int8")
        layer = model.decoder.layers[0].ffn
        assert layer.fc2.least == LEAST_VALUES.get(name)
        assert layer.fc1.least is None
        assert model.decoder.output_projection.least is None


def test_a_folder_with_files_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"--output {tmp_path} exists and is not an empty folder"):
        model_folder.save(translation(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    def fail(model: EncoderDecoder, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"--output .*model cannot be written: No space"):
        model_folder.save(translation(), tmp_path / "model", write_weights=fail)
    assert list(tmp_path.iterdir()) == []


def test_neighbours_stay_and_all_may_read(tmp_path: Path) -> None:
    neighbour = tmp_path / "model.partial"
    neighbour.mkdir()
    (neighbour / "mine.txt").write_text("mine")
    model_folder.save(translation(), tmp_path / "model")
    assert (neighbour / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.partial"]
    (tmp_path / "usual").write_text("")
    usual = (tmp_path / "usual").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "model").iterdir()} == {usual}
    assert (tmp_path / "model").stat().st_mode == neighbour.stat().st_mode


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        model_folder.save(translation(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output .*/model cannot be written: Not a dir"):
        model_folder.save(translation(), tmp_path / "file" / "model")


def test_the_current_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    model_folder.save(translation(), Path())
    assert (tmp_path / "empty" / "config.json").exists()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def empty_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def change_activation(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "activation_fn": "foo"}))


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def change_sizes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "decoder_ffn_embed_dim": 13}))


def cut_dictionary(folder: Path) -> None:
    (folder / "dict.de.txt").write_text("word\n")


def lose_a_word(folder: Path) -> None:
    path = folder / "dict.de.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def change_dtype(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "int4"}))


def quote_a_number(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "encoder_layers": "2"}))


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_config, "cannot be read as an exported model"),
        (empty_config, "cannot be read as an exported model"),
        (change_activation, "unknown activation_fn foo"),
        (lose_weights, "cannot be read as an exported model"),
        (cut_weights, "cannot be read as an exported model"),
        (change_sizes, "does not fit config.json"),
        (lose_a_word, r"dict\.de\.txt has \d+ words, but the model has \d+: export it again"),
        (change_dtype, "unknown dtype int4"),
        (quote_a_number, "encoder_layers is '2', but must be of type int"),
        (cut_dictionary, "dict.de.txt, line 1: expected 'symbol count', got 'word'"),
    ],
)
def test_broken_folders_are_refused_in_one_line(
    tmp_path: Path, damage: object, message: str
) -> None:
    model_folder.save(translation(), tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=message) as error:
        model_folder.load(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_dictionaries_equal_those_of_fairseq(tmp_path: Path) -> None:
    words = dictionary(12)
    words.add_symbol("two words")
    words.add_symbol("w0", overwrite=True)
    words.save(str(tmp_path / "theirs"))
    text = (tmp_path / "theirs").read_text()
    with pytest.raises(UserError, match="the symbol 'w0' comes twice"):
        Vocabulary.read(tmp_path / "theirs")
    (tmp_path / "theirs").write_text(text.strip() + " #fairseq:overwrite\n")
    ours = Vocabulary.read(tmp_path / "theirs")
    theirs = type(words).load(str(tmp_path / "theirs"))
    assert ours.symbols == theirs.symbols
    assert ours.indices == theirs.indices
    line = "w3 w0 unseen w1"
    assert ours.encode(line.split()) == theirs.encode_line(line, add_if_not_exist=False).tolist()
    assert ours.decode([0, 5, 3, 6, 2]) == theirs.string([0, 5, 3, 6, 2])
    ours.write(tmp_path / "ours")
    assert Vocabulary.read(tmp_path / "ours").indices == theirs.indices


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pt"], "there is no file missing.pt: give a checkpoint"),
        (["README.md"], "README.md cannot be read as a fairseq checkpoint"),
        (["README.md", "--sentencepiece-model", "LICENSE"], "LICENSE cannot be read as a sent"),
    ],
)
def test_mistakes_are_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message) as error:
        export.main([*arguments, "--out", str(tmp_path / "model")])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_onnx_is_refused_with_other_types(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export.main(["any.pt", "--out", "model", "--format", "onnx", "--dtype", "bfloat16"])
    assert "--format onnx has float32 or int8 weights" in capsys.readouterr().err


def test_missing_dictionaries_are_named(tmp_path: Path, trained: Path) -> None:
    checkpoint = str(trained / "checkpoint_best.pt")
    with pytest.raises(UserError, match=r"--data: the dictionaries of .* are not") as error:
        export.main([checkpoint, "--data", str(tmp_path), "--out", str(tmp_path / "model")])
    assert "\n" not in str(error.value)
