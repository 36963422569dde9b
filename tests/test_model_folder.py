"""What happens to the files of a folder, before it is loaded and after that."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models import build, translation_model
from resmlp_mt import tensor_files
from resmlp_mt.engine import digests, exported_config, model_folder, weights
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.onnx_export import export_onnx
from resmlp_mt.engine.translator import Translator
from resmlp_mt.errors import UserError

LINES = ["w1 w5 w3", "w2", "w7 w7 w1 w0 w9"]


def save(folder: Path, dtype: str = "float32", seed: int = 0, **more: Any) -> Path:
    model = fold(build(seed, share_all_embeddings=True).float())
    model_folder.save(translation_model(model), folder, dtype, **more)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("is_packed", [False, True], ids=["as it is", "packed"])
def test_a_loaded_model_stays_when_its_files_are_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, is_packed: bool
) -> None:
    """As ``cp NEW/* MODEL/`` does it: the same file has another content."""
    monkeypatch.setattr(weights, "gains_by_packing", lambda _: is_packed)
    folder, other = save(tmp_path / "a", dtype), save(tmp_path / "b", dtype, seed=1)
    computed = "int8" if dtype == "int8" else "float32"
    translator = Translator.load(folder, dtype=computed)
    expected = translator.translate(LINES)
    before = (folder / model_folder.WEIGHTS).stat()
    for path in other.iterdir():
        shutil.copyfile(path, folder / path.name)
    after = (folder / model_folder.WEIGHTS).stat()
    assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)
    assert translator.translate(LINES) == expected
    assert Translator.load(folder, dtype=computed).translate(LINES) != expected


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ONNX graphs."""
    return save(tmp_path_factory.mktemp("graphs") / "onnx", write_weights=export_onnx)


def with_options(folder: Path, change: dict[str, Any]) -> None:
    """Add options as a newer version would have written them, in both places."""
    path = folder / model_folder.WEIGHTS
    config = json.loads((folder / model_folder.CONFIG).read_text())
    with safe_open(path, "pt") as file:
        stored = json.loads(file.metadata()[exported_config.KEY])
    for values in (config, stored):
        for name, value in change.items():
            values[name] = {**values[name], **value} if name in values else value
    (folder / model_folder.CONFIG).write_text(json.dumps(config))
    save_file(load_file(path), path, {"format": "pt", **exported_config.metadata(stored)})
    (folder / digests.NAME).unlink()
    digests.write(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"copy_gate": True}, "copy_gate True"),
        ({"width": 3}, "width 3"),
        ({"encoder_mixing": {"taps": 3}}, "taps 3"),
        ({"decoder_mixing": {"kernel": "fft"}}, "kernel 'fft'"),
        ({"cross_mixing": {"heads": 2}}, r"cross_mixing \{'heads': 2\}"),
    ],
)
def test_options_of_a_newer_version_are_refused(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    """They were left out, and other translations came."""
    folder = save(tmp_path / "model")
    with_options(folder, change)
    with pytest.raises(UserError, match=rf"newer version of resmlp_mt, with {named}, .*: update"):
        model_folder.load(folder)


def test_options_of_a_newer_version_that_are_off_change_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    expected = Translator.load(folder).translate(LINES)
    off = {"copy_gate": False, "width": 0, "rate": 0.0, "kind": "none", "more": None}
    with_options(folder, {**off, "encoder_mixing": off})
    assert Translator.load(folder).translate(LINES) == expected


@pytest.mark.parametrize("form", ["float32", "int8", "onnx"])
def test_the_path_of_a_model_need_not_be_utf_8(tmp_path: Path, graphs: Path, form: str) -> None:
    below = tmp_path / os.fsdecode(b"caf\xe9")
    folder = graphs if form == "onnx" else save(tmp_path / form, form)
    found = folder, shutil.copytree(folder, below / form)
    expected, translated = (Translator.load(folder).translate(LINES) for folder in found)
    assert translated == expected


@pytest.mark.parametrize("only_look", [False, True])
def test_the_path_of_tensors_need_not_be_utf_8(tmp_path: Path, only_look: bool) -> None:
    below = tmp_path / os.fsdecode(b"caf\xe9")
    below.mkdir()
    tensors = {"a": torch.arange(4.0)}
    tensor_files.write(tensors, below / "x.pt")
    save_file(tensors, tmp_path / "x.safetensors")
    shutil.move(tmp_path / "x.safetensors", below)
    for name in ("x.pt", "x.safetensors"):
        read = tensor_files.read(below / name, only_look=only_look)
        torch.testing.assert_close(read["a"], tensors["a"])


def test_what_copying_programs_leave_beside_graphs_does_not_count(
    tmp_path: Path, graphs: Path
) -> None:
    """AppleDouble files of macOS, and the unfinished copies of rsync."""
    folder = Path(shutil.copytree(graphs, tmp_path / "onnx"))
    for name in ("._encoder.onnx", ".encoder.onnx.Xy12Ab", "._config.json"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    assert Translator.load(folder).translate(LINES)
    weights_folder = save(tmp_path / "weights")
    (weights_folder / model_folder.WEIGHTS).unlink()
    (weights_folder / "._encoder.onnx").touch()
    with pytest.raises(UserError, match=r"model\.safetensors: No such file"):
        model_folder.load(weights_folder)


def test_files_that_are_not_the_models_may_be_anything(tmp_path: Path) -> None:
    """The first byte of a process's memory cannot be read, whoever asks."""
    folder = save(tmp_path / "weights")
    (folder / "notes").symlink_to("/proc/self/mem")
    (folder / "data.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert Translator.load(folder).translate(LINES)


@pytest.mark.parametrize("given", [".", "", "../here", "absolute"])
def test_the_current_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """Another one would take its place, and the shell would go on in the one that is gone."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=r"is the current folder, which cannot be .*: name one in"):
        save(tmp_path / "here" if given == "absolute" else Path(given))
    assert save(Path("model")).samefile(tmp_path / "here" / "model")
