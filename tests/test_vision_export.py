"""The ONNX graph of an image classifier gives its logits, for any batch, and says how to use it."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from resmlp_mt.errors import UserError
from resmlp_mt.vision import onnx_export
from resmlp_mt.vision.evaluation_options import ExportOptions, parse
from resmlp_mt.vision.export import main
from resmlp_mt.vision.factory import load_model
from vision_checkpoints import DIGITS, checkpoint, random_model


def parse_export(words: list[str]) -> ExportOptions:
    return parse(ExportOptions, words, "export", "")


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("model_kwargs", [{}, {"pooling": "class_mlp", "mixing": "separable"}])
def test_the_graph_equals_the_model(tmp_path: Path, model_kwargs: dict[str, str]) -> None:
    """Folded, and as it is where it cannot be folded."""
    args = {"name": "resmlp_tiny", "num_classes": 10, "img_size": 8, "patch_size": 2}
    state = random_model(0, **args, **model_kwargs).state_dict()
    path = checkpoint(tmp_path / "best.pth", model=state, model_args=args | model_kwargs)
    main([str(path), "--output", str(tmp_path / "m.onnx")])
    model, saved = load_model(path)
    run = session(tmp_path / "m.onnx")
    for batch in (1, 3):
        images = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
        [logits] = run.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(images).numpy(), rtol=1e-4, atol=1e-4)
    described = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(described["classes"]) == DIGITS
    config = json.loads(described["data_config"])
    assert config == json.loads(json.dumps(saved["data_config"]))


def test_timms_models_are_exported_too(tmp_path: Path) -> None:
    model = random_model(0, name="resmlp_tiny", num_classes=5)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    words = ["--model", "resmlp_tiny", "--num-classes", "5", "--weights", str(tmp_path / "w.pth")]
    main([*words, "-o", str(tmp_path / "m.onnx")])
    images = torch.randn(2, 3, 32, 32)
    [logits] = session(tmp_path / "m.onnx").run(None, {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(images).numpy(), rtol=1e-4, atol=1e-4)


def test_the_graph_may_be_named_without_an_option() -> None:
    here = str(Path(__file__))  # a file that exists
    for words in ([here, "m.onnx"], [here, "-o", "m.onnx"]):
        found = parse_export(words)
        assert (found.output, found.checkpoint) == (Path("m.onnx"), Path(here))
    found = parse_export(["m.onnx", "--model", "resmlp_s12", "--checkpoint", here])
    assert (found.output, found.weights) == (Path("m.onnx"), here)


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "best.pth")
    for words, message in (
        ([path, "--output", tmp_path / "no/m.onnx"], r"m\.onnx cannot be written"),
        ([path, "--output", tmp_path / "m.PT"], r"m\.PT: the file is an ONNX graph, so name it"),
        ([tmp_path / "no.pth"], r"no\.pth cannot be read: No such file"),
        ([], "no model: give a checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            main([*map(str, words)])


def test_large_weights_lie_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_export, "LARGEST", 10_000)
    path = checkpoint(tmp_path / "best.pth")
    out = tmp_path / "m.onnx"
    model, _ = load_model(path)
    images = torch.randn(2, 3, 8, 8)
    for _ in range(2):  # again: the same files
        main([str(path), "--output", str(out)])
        assert {file.name for file in tmp_path.iterdir()} == {"best.pth", "m.onnx", "m.onnx.data"}
        assert f"wrote {out} and {out}.data: images (3, 8, 8)" in capsys.readouterr().out
        assert out.stat().st_size < (tmp_path / "m.onnx.data").stat().st_size
        [logits] = session(out).run(None, {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(images).numpy(), rtol=1e-4, atol=1e-4)

    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def stopped(self: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half a graph")
        path.with_name(f"{path.name}.data").write_bytes(b"half of its weights")
        raise KeyboardInterrupt

    def full(self: object, path: Path, **_: object) -> None:
        raise OSError(28, "No space left on device")

    for save, error, message in (
        (stopped, KeyboardInterrupt, None),
        (full, UserError, r"--output .*m\.onnx cannot be written \(No space left"),
    ):
        monkeypatch.setattr(torch.onnx.ONNXProgram, "save", save)
        with pytest.raises(error, match=message):
            onnx_export.export(parse_export([str(path), "--output", str(out)]))
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(
        UserError, match=r"--output /dev/null: the weights, .* GB, need a file besid"
    ):
        main([str(path), "--output", "/dev/null"])
    (tmp_path / "d.onnx.data").mkdir()
    with pytest.raises(UserError, match=r"d\.onnx\.data cannot be written \(Is a directory\)"):
        main([str(path), "--output", str(tmp_path / "d.onnx")])
