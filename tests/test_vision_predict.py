"""Predictions: in the order of the input, one for each file, whole or not at all."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import ROOT
from resmlp_mt.errors import UserError
from resmlp_mt.vision import prediction
from resmlp_mt.vision.factory import create_model, load_model
from resmlp_mt.vision.images import open_image
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.predict import main
from resmlp_mt.vision.transforms import create_transform
from vision_checkpoints import DIGITS, MEAN, STD, checkpoint, image


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A checkpoint for the digits with random weights."""
    return checkpoint(tmp_path / "best.pth")


def run(*words: object) -> None:
    main([*map(str, words), "--workers", "0"])


def rows(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    """The JSON lines that the command prints."""
    run(*words)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def pictures(root: Path, count: int) -> list[Path]:
    return [image(root / f"{index}.png", seed=index) for index in range(count)]


def test_probabilities_are_the_softmax(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pictures(tmp_path, 3)[::-1]  # not by name
    found = rows(capsys, digits, *files, "--topk", 10, "-b", 2)
    assert [row["file"] for row in found] == [str(file) for file in files]
    model, saved = load_model(digits)
    transform = create_transform(saved["data_config"])
    images = torch.stack([transform(open_image(file)) for file in files])
    with torch.no_grad():
        expected = model(images).softmax(1)
    for row, probabilities in zip(found, expected, strict=True):
        values = [best["probability"] for best in row["predictions"]]
        assert values == sorted(values, reverse=True)
        by_name = {best["label"]: best["probability"] for best in row["predictions"]}
        assert [by_name[name] for name in DIGITS] == pytest.approx(probabilities.tolist(), abs=1e-6)


def test_folders_are_walked_by_name_and_order_is_kept(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = [image(tmp_path / "in" / name) for name in ("a/2.PNG", "a/10.jpg", "b.webp")]
    (tmp_path / "in" / "notes.txt").write_text("no image")
    single = image(tmp_path / "z.png")
    found = rows(capsys, digits, single, tmp_path / "in", single, "-b", 2)
    files = [single, *sorted(inside), single]
    assert [row["file"] for row in found] == [str(file) for file in files]
    assert [best["label"] for best in found[0]["predictions"]] == [
        best["label"] for best in found[-1]["predictions"]
    ]


def test_folders_behind_links_are_walked_once(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """As in training; and files that are left out are told."""
    image(tmp_path / "elsewhere/1.png")
    folder = tmp_path / "in"
    image(folder / "0.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "link/loop").symlink_to(folder)
    (folder / "photo.heic").touch()
    found = rows(capsys, digits, folder)
    assert [row["file"] for row in found] == [str(folder / "0.png"), str(folder / "link/1.png")]
    assert f"{folder}: 1 file left out, no image by name or place (1 .heic)" in caplog.text
    assert f"{folder}/link/loop leads back to {folder}: left out" in caplog.text
    (folder / "run").mkdir()
    image(folder / "run/2.png")
    (folder / "latest").symlink_to("run")
    (folder / "machine").symlink_to("/")
    found = rows(capsys, digits, folder)
    assert [row["file"] for row in found] == [
        str(folder / name) for name in ("0.png", "link/1.png", "run/2.png")
    ]
    assert f"{folder}/latest leads to a folder that is read already: left out" in caplog.text


def test_the_same_in_both_formats(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pictures(tmp_path, 2)
    table = tmp_path / "out.csv"
    run(digits, *files, "--topk", 3, "--output", table)
    with table.open(newline="") as file:
        [*found] = csv.DictReader(file)
    for row, line in zip(found, rows(capsys, digits, *files, "--topk", 3), strict=True):
        assert row["file"] == line["file"]
        assert row["error"] == ""
        for rank, best in enumerate(line["predictions"], 1):
            assert row[f"label_{rank}"] == best["label"]
            assert float(row[f"probability_{rank}"]) == best["probability"]
    run(digits, *files, "--topk", 3, "--format", "csv")
    assert capsys.readouterr().out == table.read_text()


def test_json_is_one_array_of_the_lines(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pictures(tmp_path, 3)
    run(digits, *files, "--output", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == rows(capsys, digits, *files)
    run(digits, *files, "--format", "json")
    assert capsys.readouterr().out == (tmp_path / "out.json").read_text()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
def test_each_batch_can_be_read_when_it_is_done(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """By a program behind a pipe, which Python writes to in blocks."""
    files, pipe = pictures(tmp_path, 5), io.BytesIO()
    seen: list[int] = []  # files in the pipe after each batch
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(pipe)))
    whole = prediction.predictions

    def spied(*words: Any) -> Iterator[list[prediction.Prediction]]:
        for batch in whole(*words):
            yield batch
            seen.append(sum(str(file).encode() in pipe.getvalue() for file in files))

    monkeypatch.setattr(prediction, "predictions", spied)
    run(digits, *files, "--batch-size", 2, "--format", kind)
    assert seen == [2, 4, 5]


def test_bad_images_keep_their_places(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pictures(tmp_path, 7)
    for index in (1, 2, 3, 6):  # batches of two: one of them wholly bad
        files[index].write_bytes(b"")
    words = (digits, *files, "-b", 2, "--on-error", "skip")
    run(*words)
    printed = capsys.readouterr()
    found = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["file"] for row in found] == [str(file) for file in files]
    assert [index for index, row in enumerate(found) if "error" in row] == [1, 2, 3, 6]
    assert found[6] == {"file": str(files[6]), "error": "the file is empty"}
    assert "4 of 7 images could not be read" in printed.err
    run(*words, "--format", "csv", "--topk", 2)
    table = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert table[2] == [str(files[1]), "", "", "", "", "the file is empty"]


def test_a_bad_image_ends_the_command_without_output(digits: Path, tmp_path: Path) -> None:
    files = pictures(tmp_path, 3)
    files[2].write_bytes(b"")
    table = tmp_path / "out.csv"
    table.write_text("earlier")
    with pytest.raises(UserError, match=r"2\.png: the file is empty; --on-error skip"):
        run(digits, *files, "--output", table, "-b", 1)
    assert table.read_text() == "earlier"
    assert not list(tmp_path.glob(".*"))


def test_predictions_do_not_depend_on_the_batch(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pictures(tmp_path, 5)
    alone = [rows(capsys, digits, file)[0] for file in files]
    for row, expected in zip(rows(capsys, digits, *files), alone, strict=True):
        for best, other in zip(row["predictions"], expected["predictions"], strict=True):
            assert best["label"] == other["label"]
            assert best["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_more_labels_than_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "best.pth", classes=["cat", "dog"])
    [row] = rows(capsys, path, image(tmp_path / "0.png"), "--topk", 5)
    assert {best["label"] for best in row["predictions"]} == {"cat", "dog"}
    run(path, tmp_path / "0.png", "--format", "csv")
    header = "file,label_1,probability_1,label_2,probability_2,error"
    assert capsys.readouterr().out.splitlines()[0] == header


def test_bare_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(create_model("resmlp_tiny", num_classes=7).state_dict(), tmp_path / "w.pth")
    file = image(tmp_path / "0.png")
    words = ("--model", "resmlp_tiny", "--weights", tmp_path / "w.pth")
    [row] = rows(capsys, *words, "--num-classes", 7, "--topk", 7, file)
    assert {best["label"] for best in row["predictions"]} == set("0123456")
    torch.save(create_model("resmlp_tiny").state_dict(), tmp_path / "w.pth")
    [row] = rows(capsys, file, *words, "--topk", 1000)
    assert "n01440764" in {best["label"] for best in row["predictions"]}  # ImageNet's names


def test_bare_weights_of_another_design(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The probabilities are those of the model that was saved."""
    torch.manual_seed(0)
    design = {"pooling": "class_mlp", "norm": "layernorm", "patch_size": 8}
    model = create_model("resmlp_tiny", num_classes=3, **design).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    words = ("--model", "resmlp_tiny", "--weights", tmp_path / "w.pth", "--num-classes", 3)
    file = image(tmp_path / "0.png")
    kwargs = [f"{name}={value}" for name, value in design.items()]
    [row] = rows(capsys, file, *words, "--topk", 3, "--crop-pct", 1, "--model-kwargs", *kwargs)
    data_config = {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 1.0,
                   "mean": MEAN, "std": STD}  # fmt: skip
    pixels = create_transform(data_config)(open_image(file))
    expected = model(pixels.unsqueeze(0)).softmax(1)[0]
    found = {int(best["label"]): best["probability"] for best in row["predictions"]}
    assert [found[i] for i in range(3)] == pytest.approx(expected.tolist(), abs=1e-5)
    with pytest.raises(UserError, match="--no-use-ema is for the checkpoints"):
        run(*words, file, "--no-use-ema")
    with pytest.raises(SystemExit):
        run(*words, file, "--model-kwargs", "num_classes=4")
    assert "num_classes follows from --model and the data" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--model resmlp_tiny: .*nrm"):
        run(*words, file, "--model-kwargs", "nrm=layernorm")


def test_weights_of_timms_hub(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the hub: no test downloads."""
    torch.manual_seed(0)
    create = timm.create_model
    hub = {name: create(name, num_classes=1000).eval() for name in ("resmlp_12_224", "test_vit")}

    def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
        return hub[name] if pretrained else create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", create_model)
    file = image(tmp_path / "0.png")
    for name, source in (("resmlp_s12", "resmlp_12_224"), ("timm:test_vit", "test_vit")):
        options = ("--model", name, "--weights", f"timm:{source}", "--topk", 1000)
        [row] = rows(capsys, file, *options)
        config = timm.data.resolve_model_data_config(hub[source])
        if name == "resmlp_s12":  # ours: the paper's crop, ImageNet's mean
            config |= {
                "mean": timm.data.IMAGENET_DEFAULT_MEAN,
                "std": timm.data.IMAGENET_DEFAULT_STD,
            }
            config |= {"crop_pct": 0.9, "interpolation": "bicubic"}
        pixels = create_transform(config)(open_image(file)).unsqueeze(0)
        with torch.no_grad():
            expected = hub[source](pixels).softmax(1)[0].sort(descending=True).values
        found = [best["probability"] for best in row["predictions"]]
        assert found == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_image(digits: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg.*a pipe, not a file"):
        run(digits, tmp_path / "a.jpg")


def test_names_need_not_be_utf8(digits: Path, tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xc3\xbc.png")
    image(tmp_path / "0.png").rename(name)
    run(digits, name, "--output", tmp_path / "out.csv")
    assert os.fsencode(name) in (tmp_path / "out.csv").read_bytes()
    run(digits, name, "--output", tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text())["file"] == name
    done = subprocess.run(
        [sys.executable, "-m", "resmlp_mt.vision.predict", digits, name, "--format", "csv"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == (tmp_path / "out.csv").read_bytes()


def test_mistakes_are_one_sentence(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("no checkpoint")
    file = image(tmp_path / "0.png")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((digits,), "no images: name files or folders after the checkpoint"),
        ((digits, tmp_path / "missing.png"), r"missing\.png is not a file or folder"),
        ((digits, tmp_path / "empty"), r"empty holds no images \(\.bmp, "),
        ((file,), r"0\.png cannot be read because it is damaged"),
        ((tmp_path / "text.pth", file), r"text\.pth cannot be read because it is damaged"),
        ((digits, file, "--output", tmp_path / "no/o.csv"), r"o\.csv cannot be written"),
        ((digits, file, "--weights", "x"), "leave out --model"),
        ((digits, file, "--model-kwargs", "norm=affine"), "and --model-kwargs, or the checkp"),
        (("--model", "resmlp_tiny", "--weights", tmp_path / "none", file), "none"),
    ]
    for words, expected in cases:
        with pytest.raises(UserError, match=expected) as caught:
            run(*words)
        assert "\n" not in str(caught.value)


def test_an_output_of_unknown_kind(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --format csv, json or jsonl"):
        run(digits, tmp_path, "--output", tmp_path / "out.xlsx")
