"""Exported folders hold what the checkpoint holds, and are refused when they are broken."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import ROOT, Corpus
from models import build, dictionary, padded, sentences, translation_model
from resmlp_mt import export, packed_linear
from resmlp_mt.engine import digests, model_folder, weights
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.engine.subwords import read_sentencepiece
from resmlp_mt.engine.translator import Translator
from resmlp_mt.engine.vocabulary import Vocabulary
from resmlp_mt.engine.weights import prepared
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.checkpoints import read as read_state
from resmlp_mt.fairseq_plugin.conversion import load_trained
from resmlp_mt.model.config import ACTIVATIONS, LEAST_VALUES
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.packed_linear import Int8Linear, PackedLinear, quantize
from test_folding import relative_error
from test_mixing import MODELS


@torch.inference_mode()
def scores(model: EncoderDecoder) -> torch.Tensor:
    """Scores of the tokens of three sentences."""
    return model(padded(sentences([5, 3, 9])), torch.tensor([[2, 5, 6], [2, 9, 4], [2, 7, 8]]))


SHARED = {
    "all": {"share_all_embeddings": True},
    "decoder's": {"share_decoder_input_output_embed": True},
}


@pytest.mark.parametrize("changes", [*MODELS.values(), *SHARED.values()], ids=[*MODELS, *SHARED])
def test_a_folder_holds_the_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved = translation_model(fold(build(**changes).float()))
    model_folder.save(saved, str(tmp_path / "model"))
    loaded = model_folder.load(str(tmp_path / "model"))
    assert loaded.model.config == saved.model.config
    assert (loaded.source_lang, loaded.target_lang) == ("en", "de")
    assert loaded.source.symbols == loaded.target.symbols == saved.source.symbols
    torch.testing.assert_close(scores(loaded.model), scores(saved.model), rtol=1e-5, atol=1e-5)
    assert not [m for m in loaded.model.modules() if isinstance(m, PackedLinear)]  # small weights


@pytest.mark.parametrize("changes", [*MODELS.values(), *SHARED.values()], ids=[*MODELS, *SHARED])
def test_int8_in_the_file_equals_int8_made_when_loading(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    saved = translation_model(fold(build(**changes).float()))
    model_folder.save(saved, tmp_path / "float32")
    model_folder.save(saved, tmp_path / "int8", "int8")
    from_file = model_folder.load(tmp_path / "int8").model
    on_loading = model_folder.load(tmp_path / "float32", "int8").model
    assert isinstance(from_file.decoder.kv_proj, Int8Linear)
    torch.testing.assert_close(scores(from_file), scores(on_loading), rtol=0, atol=0)
    assert relative_error(scores(from_file), scores(saved.model)) < 0.1
    with pytest.raises(UserError, match="holds int8 weights; export it with --dtype float32"):
        model_folder.load(tmp_path / "int8", "float32")


@pytest.mark.parametrize("changes", [{}, *SHARED.values()], ids=["own", *SHARED])
def test_int8_embeddings_are_within_half_a_scale(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved = translation_model(fold(build(**changes).float()))
    model_folder.save(saved, tmp_path / "int8", "int8")
    loaded = model_folder.load(tmp_path / "int8").model
    tokens = torch.tensor([[3, 19], [1, 3]])
    for side in ("encoder", "decoder"):
        expected = getattr(saved.model, side).embed_tokens.weight
        table = getattr(loaded, side).embed_tokens
        scale = expected.abs().amax(1, keepdim=True) / 127
        found = table(torch.arange(20))
        assert found.dtype == torch.float32
        assert ((found - expected).abs() <= scale / 2 + 1e-7).all()
        assert torch.equal(table(tokens), found[tokens])


@pytest.mark.parametrize("changes", SHARED.values(), ids=SHARED)
def test_an_int8_folder_has_a_shared_table_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Every number of the matrices is one byte, and no byte is stored twice."""
    saved = translation_model(fold(build(**changes).float()))
    model_folder.save(saved, tmp_path / "int8", "int8")
    stored = load_file(tmp_path / "int8" / model_folder.WEIGHTS)
    tables = [name for name, value in stored.items() if value.shape == (20, 8)]
    assert "decoder.output_projection.weight" not in tables
    assert len(tables) == (1 if saved.model.config.share_all_embeddings else 2)
    assert {stored[name].dtype for name in tables} == {torch.int8}
    loaded = model_folder.load(tmp_path / "int8").model
    hidden = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    expected = saved.model.decoder.output_projection(hidden)
    assert relative_error(loaded.decoder.output_projection(hidden), expected) < 0.02


@pytest.mark.parametrize("decay", ["none", "both"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_matrices_of_distances_are_stored_by_distance(
    tmp_path: Path, dtype: str, decay: str
) -> None:
    options = {"mixing_heads": 2, "mixing_relative": "alone", "mixing_decay": decay}
    saved = translation_model(fold(build(**options).float()))
    model_folder.save(saved, tmp_path / "model", dtype)
    stored = load_file(tmp_path / "model" / model_folder.WEIGHTS)
    loaded = model_folder.load(tmp_path / "model").model
    for side, length in (("encoder", 12), ("decoder", 10)):
        for index, layer in enumerate(getattr(saved.model, side).layers):
            name = f"{side}.layers.{index}.token_mixing"
            assert f"{name}.weight" not in stored
            diagonals = stored[f"{name}.diagonals"]
            expected, found = layer.token_mixing.weight, loaded.get_submodule(name).weight
            assert torch.equal(found, expected)
            for t, s in ((0, 0), (length - 1, 0), (3, 1), (0, length - 1)):
                assert torch.equal(diagonals[:, length - 1 - (t - s)], expected[:, t, s])
    del stored["encoder.layers.0.token_mixing.diagonals"]
    stored["encoder.layers.0.token_mixing.diagonals"] = torch.ones(2, 22)
    save_file(stored, tmp_path / "model" / model_folder.WEIGHTS)
    with pytest.raises(UserError, match=r"diagonals of size \[2, 22\]: expected \[2, 23\]"):
        model_folder.load(tmp_path / "model")


def test_int8_folders_with_float_embeddings_load(tmp_path: Path) -> None:
    """As they were written before the embeddings were in int8 too."""
    saved = translation_model(fold(build(**SHARED["all"]).float()))
    model_folder.save(saved, tmp_path / "model", "int8")
    old = {}
    for name, module in saved.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            old[f"{name}.weight"], old[f"{name}.scale"] = quantize(module.weight.detach())
    old = {**dict(saved.model.named_parameters()), **old}
    save_file(old, tmp_path / "model" / model_folder.WEIGHTS)
    (tmp_path / "model" / digests.NAME).unlink()
    loaded = model_folder.load(tmp_path / "model").model
    for side in (loaded.encoder, loaded.decoder):
        assert torch.equal(side.embed_tokens.weight, saved.model.encoder.embed_tokens.weight)
    assert relative_error(scores(loaded), scores(saved.model)) < 0.1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("decoder.output_projection.columns", None, r"projection\.scale is missing"),
        ("decoder.output_projection.columns", torch.ones(3), r"columns of size \[3\]: exp.* \[8\]"),
        ("decoder.output_projection.bias", None, r"projection\.bias is missing"),
        ("encoder.embed_tokens.scale", None, r"projection\.weight is missing"),
        ("encoder.embed_tokens.scale", torch.ones(8), r"tokens\.scale of size \[8\]: exp.* \[20\]"),
        ("encoder.embed_tokens.weight", torch.ones(20, 8), r"float32: expected torch\.int8"),
        ("encoder.layers.0.ffn.fc1.scale", None, r"fc1\.scale is missing"),
        ("encoder.layers.0.ffn.fc1.bias", torch.ones(5), r"fc1\.bias of size \[5\]: exp.* \[12\]"),
    ],
)
def test_int8_parts_that_do_not_fit_are_named(
    tmp_path: Path, name: str, change: torch.Tensor | None, message: str
) -> None:
    saved = translation_model(fold(build(**SHARED["all"]).float()))
    model_folder.save(saved, tmp_path / "model", "int8")
    path = tmp_path / "model" / model_folder.WEIGHTS
    stored = load_file(path)
    del stored[name]
    save_file(stored if change is None else {**stored, name: change}, path)
    with pytest.raises(UserError, match=message) as error:
        model_folder.load(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_translations_in_int8_are_those_of_float32(
    tmp_path: Path, corpus: Corpus, trained: Path
) -> None:
    """Of a trained model with a shared embedding, embeddings included."""
    loaded = load_trained(trained / "checkpoint_best.pt", corpus.data, corpus.spm)
    lines = corpus.sentences("valid", "en") + corpus.sentences("test", "en")
    found = {}
    for dtype in ("float32", "int8"):
        model_folder.save(loaded, tmp_path / dtype, dtype)
        translations = Translator.load(tmp_path / dtype).translate(lines)
        found[dtype] = [best.text for best, *_ in translations]
    same = [a == b for a, b in zip(*found.values(), strict=True)]
    assert sum(same) >= 0.9 * len(lines)
    sizes = {d: (tmp_path / d / model_folder.WEIGHTS).stat().st_size for d in found}
    parameters = sum(p.numel() for p in loaded.model.parameters())
    table = loaded.model.decoder.output_projection.weight.numel()
    assert sizes["float32"] >= 4 * parameters
    assert sizes["int8"] <= 1.2 * (parameters - table) + 20_000  # names and shapes


def test_bfloat16_weights_compute_in_float32_where_asked(tmp_path: Path) -> None:
    saved = translation_model()
    model_folder.save(saved, tmp_path / "model", "bfloat16")
    loaded = model_folder.load(tmp_path / "model", "float32")
    expected = scores(saved.model)
    assert (scores(loaded.model) - expected).norm() < 0.02 * expected.norm()


def test_bfloat16_is_refused_where_the_processor_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder.save(translation_model(), tmp_path / "model")
    monkeypatch.setattr(weights, "computes_in_bfloat16", lambda: False)
    with pytest.raises(UserError, match="--dtype bfloat16 needs a processor"):
        model_folder.load(tmp_path / "model", "bfloat16")


@pytest.fixture(params=["FBGEMM", "oneDNN"])
def int8_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel of int8 products, which otherwise the processor decides."""
    if request.param == "oneDNN" and not torch.backends.mkldnn.is_available():
        pytest.skip("needs oneDNN")
    monkeypatch.setattr(packed_linear, "multiplies_int8_tiles", lambda: request.param == "oneDNN")
    monkeypatch.setattr(packed_linear, "adds_int8_in_32_bits", lambda: False)
    return str(request.param)


@pytest.mark.parametrize("least", [None, -1.5])
@pytest.mark.usefixtures("int8_kernel")
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


def test_both_int8_kernels_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for inputs that lie between two integers, which one may round up and the other down."""
    generator = torch.Generator().manual_seed(1)
    weight, bias = (torch.randn(shape, generator=generator) for shape in ((96, 64), (96,)))
    found = []
    for has_tiles, has_vnni in ((False, False), (False, True), (True, True)):
        monkeypatch.setattr(packed_linear, "multiplies_int8_tiles", lambda has=has_tiles: has)
        monkeypatch.setattr(packed_linear, "adds_int8_in_32_bits", lambda has=has_vnni: has)
        layer = Int8Linear(*quantize(weight), bias, columns=torch.linspace(0.5, 2, 64))
        few, many = torch.randn(71, 64, generator=generator.manual_seed(2)).split((7, 64))
        layer(few)
        assert layer.blocks is None
        found.append(layer(many.view(8, 8, 64)))
        assert (layer.blocks is not None) == (has_tiles or has_vnni)
        integers, scale = layer.integers()
        assert torch.equal(integers, quantize(weight)[0])
        assert torch.equal(scale, quantize(weight)[1])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("least", [None, 0.0, -0.17])
@pytest.mark.usefixtures("int8_kernel")
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


def test_a_mount_point_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    model_folder.check_is_free(tmp_path / "model")
    with pytest.raises(UserError, match=f"--output {tmp_path} is a mount point, .* a folder in it"):
        model_folder.check_is_free(tmp_path)


def test_a_folder_with_files_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"--output {tmp_path} exists and is not an empty folder"):
        model_folder.save(translation_model(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    def fail(model: EncoderDecoder, folder: Path, shortlist: Shortlist | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"--output .*model cannot be written \(No space"):
        model_folder.save(translation_model(), tmp_path / "model", write_weights=fail)
    assert list(tmp_path.iterdir()) == []


def test_neighbours_stay_and_all_may_read(tmp_path: Path) -> None:
    neighbour = tmp_path / "model.partial"
    neighbour.mkdir()
    (neighbour / "mine.txt").write_text("mine")
    model_folder.save(translation_model(), tmp_path / "model")
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
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\): choose"):
        model_folder.save(translation_model(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output .*/file cannot be written \(File exists"):
        model_folder.save(translation_model(), tmp_path / "file" / "model")


UNREADABLE = "cannot be read as an exported model"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", UNREADABLE),
        ("config.json", "[]", UNREADABLE),
        ("config.json", {"activation_fn": "foo"}, "unknown activation_fn foo"),
        ("config.json", {"decoder_ffn_embed_dim": 13}, "does not fit config.json"),
        ("config.json", {"dtype": "int4"}, "unknown dtype int4"),
        ("config.json", {"encoder_layers": "2"}, "encoder_layers is '2', but must be of type int"),
        ("model.safetensors", None, UNREADABLE),
        ("model.safetensors", 1000, UNREADABLE),
        ("dict.de.txt", "word\n", "dict.de.txt, line 1: expected 'symbol count', got 'word'"),
        ("dict.de.txt", "word 1\n", r"dict\.de\.txt has 5 words, but the model has 20: export it"),
    ],
)
def test_broken_folders_are_refused_in_one_line(
    tmp_path: Path, file: str, content: str | int | dict[str, object] | None, message: str
) -> None:
    """A new text, new options, the size that is left, or no such file."""
    model_folder.save(translation_model(), tmp_path / "model")
    path = tmp_path / "model" / file
    if content is None:
        path.unlink()
    elif isinstance(content, int):
        os.truncate(path, content)
    elif isinstance(content, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | content))
    else:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        model_folder.load(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_what_else_is_given_as_a_model_is_told(tmp_path: Path) -> None:
    """A folder of checkpoints or of another program, a file of the folder, a pointer of Git LFS."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for name in ("checkpoint1.pt", "checkpoint_best.pt", "checkpoint_last.pt"):
        (checkpoints / name).touch()
    such = "export one of them, such as .*/checkpoint_best.pt"
    with pytest.raises(UserError, match=f"is a folder of checkpoints: {such}"):
        model_folder.load(checkpoints)
    with pytest.raises(UserError, match=r"such as .*/checkpoint_best\.pt"):
        export.main([str(checkpoints), "--out", str(tmp_path / "out")])
    (checkpoints / "config.json").write_text('{"model_type": "marian", "d_model": 512}')
    with pytest.raises(UserError, match=r"config\.json: it is another program's"):
        model_folder.load(checkpoints)
    folder = tmp_path / "model"
    model_folder.save(translation_model(), folder)
    with pytest.raises(UserError, match=r"config\.json is a file: give the folder"):
        model_folder.load(folder / "config.json")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for path in [*folder.iterdir(), folder / "encoder.onnx", folder / "shortlist.safetensors"]:
        content = path.read_bytes() if path.exists() else None
        path.write_text(pointer)
        with pytest.raises(UserError, match=f"^{path} is a pointer of Git LFS: .* git lfs pull"):
            model_folder.load(folder)
        path.unlink() if content is None else path.write_bytes(content)
    (tmp_path / "checkpoint.pt").write_text(pointer)
    (tmp_path / "spm.model").write_text(pointer)
    for read, path in (
        (read_state, tmp_path / "checkpoint.pt"),
        (read_sentencepiece, tmp_path / "spm.model"),
    ):
        with pytest.raises(UserError, match=f"^{path} is a pointer of Git LFS: .* git lfs pull"):
            read(path)


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
        (["missing.pt"], "missing.pt does not exist: give one checkpoint"),
        (["README.md"], "README.md cannot be read because it is damaged or not a PyTorch file"),
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


def test_a_missing_checkpoint_is_named_before_fairseq_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resmlp_mt.fairseq_plugin.conversion", None)
    with pytest.raises(UserError, match=r"none\.pt does not exist: give one checkpoint"):
        export.main([str(tmp_path / "none.pt"), "--out", str(tmp_path / "model")])


def test_onnx_is_refused_with_other_types(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export.main(["any.pt", "--out", "model", "--format", "onnx", "--dtype", "bfloat16"])
    assert "--format onnx has float32 or int8 weights" in capsys.readouterr().err


def test_missing_dictionaries_are_named(tmp_path: Path, trained: Path) -> None:
    checkpoint = str(trained / "checkpoint_best.pt")
    with pytest.raises(UserError, match=r"--data: the dictionaries of .* are not") as error:
        export.main([checkpoint, "--data", str(tmp_path), "--out", str(tmp_path / "model")])
    assert "\n" not in str(error.value)


def test_a_checkpoint_may_have_weights_and_options_alone(
    tmp_path: Path, corpus: Corpus, trained: Path
) -> None:
    """fairseq looks for the history of the optimizer, and ends in a KeyError.

    The names of the weights may be those of a wrapper.
    """
    state = read_state(trained / "checkpoint_best.pt")
    path = tmp_path / "reduced.pt"
    torch.save({"cfg": state["cfg"], "model": state["model"]}, path)
    expected = load_trained(trained / "checkpoint_best.pt", corpus.data)
    torch.testing.assert_close(
        dict(load_trained(path, corpus.data).model.state_dict()), dict(expected.model.state_dict())
    )
    for wrapped in ("module.{}", "_fsdp_wrapped_module.{}", "module._orig_mod.{}"):
        names = {wrapped.format(name): value for name, value in state["model"].items()}
        torch.save({"cfg": state["cfg"], "model": names}, path)
        found = load_trained(path, corpus.data).model.state_dict()
        torch.testing.assert_close(dict(found), dict(expected.model.state_dict()))
    state["model"]["encoder.version"] = torch.ones(1)
    torch.save({"cfg": state["cfg"], "model": state["model"]}, path)
    with pytest.raises(UserError, match=r'Unexpected key\(s\) in state_dict: "encoder.version"'):
        load_trained(path, corpus.data)
