"""Damage to a model, by accident or on purpose, is noticed before anything is translated."""

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from fairseq import checkpoint_utils
from safetensors.torch import load_file, save_file

from conftest import Corpus
from models import translation_model
from resmlp_mt import tensor_files
from resmlp_mt.engine import digests, exported_config, model_folder
from resmlp_mt.engine.onnx_export import export_onnx
from resmlp_mt.engine.onnx_model import OnnxModel
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import checkpoints, ranking
from resmlp_mt.fairseq_plugin.conversion import load_trained
from resmlp_mt.model.config import ModelConfig
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model in each form."""
    parent = tmp_path_factory.mktemp("exported")
    folders = {}
    for form in ("float32", "int8", "onnx"):
        folders[form] = parent / form
        if form == "onnx":
            model_folder.save(translation_model(), folders[form], write_weights=export_onnx)
        else:
            model_folder.save(translation_model(), folders[form], form)
    return folders


@pytest.fixture
def folder(exported: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported["float32"], tmp_path / "model"))


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("form", ["float32", "int8", "onnx"])
def test_every_flipped_bit_is_noticed(exported: dict[str, Path], form: str, tmp_path: Path) -> None:
    rng = random.Random(form)
    model_folder.load(exported[form])
    names = sorted(path.name for path in exported[form].iterdir() if path.name != digests.NAME)
    for turn in range(3 * len(names) if form == "onnx" else 20 * len(names)):
        damaged = tmp_path / f"damaged{turn}"
        shutil.copytree(exported[form], damaged)
        flip(damaged / names[turn % len(names)], rng)
        with pytest.raises(UserError) as refused:
            model_folder.load(damaged)
        assert "damaged" in str(refused.value)  # the folder's name, if nothing else
        shutil.rmtree(damaged)


def test_what_fits_but_is_not_what_was_written_is_refused(folder: Path) -> None:
    written = (folder / "config.json").read_text()
    (folder / "config.json").write_text(written.replace('"de"', '"fr"'))
    (folder / "dict.fr.txt").write_text((folder / "dict.de.txt").read_text())
    with pytest.raises(UserError, match=r"config\.json is not the file that was exported"):
        model_folder.load(folder)
    (folder / "config.json").write_text(written)
    model_folder.load(folder)
    tensors = load_file(folder / model_folder.WEIGHTS)
    same = [name for name, value in tensors.items() if value.shape == (12, 8)]
    tensors[same[0]], tensors[same[1]] = tensors[same[1]], tensors[same[0]]
    save_file(tensors, folder / model_folder.WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.safetensors is not the file that was exported"):
        model_folder.load(folder)


@pytest.mark.parametrize("form", ["float32", "onnx"])
def test_every_lost_file_is_named(exported: dict[str, Path], form: str, tmp_path: Path) -> None:
    for path in exported[form].iterdir():
        if path.name == digests.NAME:
            continue
        damaged = Path(shutil.copytree(exported[form], tmp_path / f"without-{path.name}"))
        (damaged / path.name).unlink()
        with pytest.raises(UserError, match=path.name):
            model_folder.load(damaged)


def test_digests_may_be_those_of_sha256sum_for_binary_files(folder: Path) -> None:
    sums = folder / digests.NAME
    sums.write_text(sums.read_text().replace("  ", " *"))
    digests.check(folder, ["config.json"])
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json is not the file that was exported"):
        digests.check(folder, ["config.json"])


def test_other_files_and_folders_do_not_count(folder: Path) -> None:
    """A folder of 0.1.0 has no digests; notes and caches lie in any."""
    for name in (digests.NAME, "config.json"):
        before = digests.total(folder)
        (folder / "README.md").write_text("notes")
        (folder / ".cache").mkdir(exist_ok=True)
        (folder / "dict.old.txt").mkdir(exist_ok=True)
        (folder / "._config.json").touch()
        assert digests.total(folder) == before
        with (folder / name).open("a") as file:
            file.write("\n")
        assert digests.total(folder) != before
        (folder / digests.NAME).unlink(missing_ok=True)


def test_a_folder_without_digests_is_read_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / digests.NAME).unlink()
    model_folder.load(folder)
    assert "was written by an older version" in caplog.text


HOSTILE: dict[str, Any] = {
    "encoder_layers": 100_000,
    "decoder_layers": 1,
    "decoder_attention_heads": 0,
    "max_source_positions": 10**18,
    "encoder_embed_dim": 10**18,
    "encoder_ffn_embed_dim": -1,
    "source_vocabulary": 0,
    "padding_idx": -1,
    "source_lang": "../../x",
    "target_lang": "",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", ["float32", "onnx"])
def test_sizes_are_compared_before_anything_is_built(
    exported: dict[str, Path], form: str, name: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported[form], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: HOSTILE[name]}))
    write_digests(folder)
    is_size, verb = isinstance(HOSTILE[name], int), "with" if form == "onnx" else ""
    with pytest.raises(UserError, match=f"{verb} ?{name} " if is_size else "model"):
        model_folder.load(folder)


def write_digests(folder: Path) -> None:
    """Whoever changes a file may change these, too."""
    (folder / digests.NAME).unlink()
    digests.write(folder)


@pytest.mark.parametrize("form", ["int8", "onnx"])
def test_no_option_of_the_model_can_be_changed_together_with_its_digest(
    exported: dict[str, Path], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads and activations fit the tensors, whatever they are. No graph is run."""
    monkeypatch.setattr(OnnxModel, "encode", lambda *_: pytest.fail("a graph was run"))
    folder = Path(shutil.copytree(exported[form], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    for field in dataclasses.fields(ModelConfig):
        name, value = field.name, config[field.name]
        if isinstance(value, dict):
            changed: Any = {**value, "decay": not value["decay"]}
        elif isinstance(value, str):
            changed = "relu"
        else:
            changed = not value if isinstance(value, bool) else value + 1
        (folder / "config.json").write_text(json.dumps({**config, name: changed}))
        write_digests(folder)
        says = f"exported with {name} " if form == "onnx" else r"config\.json"
        with pytest.raises(UserError, match=says) as refused:
            model_folder.load(folder)
        assert "\n" not in str(refused.value)


def test_sizes_of_graphs_are_those_of_their_arrays(
    exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if what the graphs say of themselves was changed with all the rest."""
    monkeypatch.setattr(exported_config, "check", lambda *_: None)
    folder = Path(shutil.copytree(exported["onnx"], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    for name, values in {
        "target_vocabulary": [19, 10**18],
        "source_vocabulary": [21, 10**12],
    }.items():
        for value in values:
            (folder / "config.json").write_text(json.dumps({**config, name: value}))
            write_digests(folder)
            with pytest.raises(
                UserError, match=r"(coder\w*|projection)\.onnx does not fit"
            ) as refused:
                model_folder.load(folder)
            assert "\n" not in str(refused.value)


def test_graphs_that_do_not_tell_their_sizes_are_refused(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported["onnx"], tmp_path / "model"))
    graph = onnx.load(folder / "encoder.onnx")
    for text in (None, "", "[]", "[" * 100_000, '{"other": 1}'):
        del graph.metadata_props[:]
        if text is not None:
            onnx.helper.set_model_props(graph, {exported_config.KEY: text})
        onnx.save(graph, folder / "encoder.onnx")
        write_digests(folder)
        with pytest.raises(UserError, match=r"encoder\.onnx does not say which sizes"):
            model_folder.load(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "\udcff", "{}"])
def test_other_contents_are_refused_in_a_sentence(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError):
        model_folder.load(folder)


def test_missing_and_surplus_tensors_are_named(folder: Path) -> None:
    tensors = load_file(folder / model_folder.WEIGHTS)
    name = "decoder.output_projection.bias"
    for changed in (
        {key: value for key, value in tensors.items() if key != name},
        {**tensors, "encoder.extra": torch.ones(2)},
    ):
        save_file(changed, folder / model_folder.WEIGHTS)
        with pytest.raises(UserError, match=r"does not fit config\.json"):
            model_folder.load(folder)


def test_checkpoints_carry_a_digest(trained: Path, corpus: Corpus, tmp_path: Path) -> None:
    state = torch.load(trained / "checkpoint_best.pt")
    assert state["digest"] == checkpoints.digest(state)
    path = tmp_path / "x.pt"

    def refused(match: str) -> None:
        torch.save(state, path)
        for read in (
            lambda: load_trained(path, corpus.data),
            lambda: checkpoint_utils.load_checkpoint_to_cpu(str(path)),
        ):
            with pytest.raises(UserError, match=match):
                read()

    name = next(name for name, value in state["model"].items() if value.dim() == 2)
    state["model"][name][0, 0] += 1
    refused("does not have the digest that was written with it")
    state["model"][name][0, 0] = torch.load(trained / "checkpoint_best.pt")["model"][name][0, 0]
    state["cfg"]["model"]["activation_fn"] = "relu"
    refused("does not have the digest")
    state["cfg"]["model"]["activation_fn"] = "gelu"
    for key, value in (("encoder_layers", 100_000), ("max_source_positions", 10**9)):
        before = state["cfg"]["model"][key]
        state["cfg"]["model"][key] = value
        state["digest"] = checkpoints.digest(state)
        refused(f"do not fit its configuration: {key} is")
        state["cfg"]["model"][key] = before


def test_flipped_bits_of_checkpoints_are_noticed(trained: Path, tmp_path: Path) -> None:
    """Those that remain are in the padding between the parts of the archive."""
    rng = random.Random(1)
    expected = torch.load(trained / "checkpoint_best.pt")
    noticed = 0
    for _ in range(40):
        path = tmp_path / "x.pt"
        shutil.copy(trained / "checkpoint_best.pt", path)
        flip(path, rng)
        try:
            found = checkpoint_utils.load_checkpoint_to_cpu(str(path))
        except UserError:
            noticed += 1
            continue
        for name, value in expected["model"].items():
            assert torch.equal(found["model"][name], value)
    assert noticed >= 35


def test_an_average_has_a_digest_of_its_own(trained: Path, corpus: Corpus, tmp_path: Path) -> None:
    paths = ranking.latest_checkpoints(trained, 2, by="epoch")
    tensor_files.write(checkpoints.average(paths), tmp_path / "average.pt")
    load_trained(tmp_path / "average.pt", corpus.data)
