"""Accuracy equals scikit-learn's, classes are matched by name, and errors say why."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import confusion_matrix, recall_score, top_k_accuracy_score

from resmlp_mt.errors import UserError
from resmlp_mt.vision import (
    classifier,
    create_model,
    evaluation,
    evaluation_options,
    export,
    knn,
    load_weights,
    predict,
)
from resmlp_mt.vision.checkpoints import save
from resmlp_mt.vision.class_map import check_order
from resmlp_mt.vision.data import create_dataset
from resmlp_mt.vision.evaluate import main
from resmlp_mt.vision.factory import build_model, load_model
from resmlp_mt.vision.images import collate
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.train import main as train
from resmlp_mt.vision.transforms import create_transform
from vision_checkpoints import DIGITS, MEAN, STD, checkpoint, folder, image, run_json


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A checkpoint for the digits with random weights."""
    return checkpoint(tmp_path / "best.pth")


def reference(
    path: Path, data: list[str], use_ema: bool = True, **kwargs: Any
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Targets (images,) and logits (images, classes) of the validation split in one batch."""
    model, saved = load_model(path, use_ema)
    dataset = create_dataset(data, "val", create_transform(saved["data_config"]), **kwargs)
    images, targets, bad = collate([dataset[index] for index in range(len(dataset))])
    assert not bad
    with torch.no_grad():
        return targets.numpy(), model(images).numpy()


def test_the_report_equals_scikit_learn(digits: Path, tmp_path: Path) -> None:
    targets, logits = reference(digits, ["digits"])
    matrix = tmp_path / "confusion.csv"
    # 360 images in batches of 50: the last one is smaller
    report = run_json(main, tmp_path / "r.json", digits, "-b", 50, "--confusion-csv", matrix)
    assert report["images"] == len(targets) == 360
    for k in (1, 5):
        expected = 100 * top_k_accuracy_score(targets, logits, k=k)
        assert report[f"top{k}"] == pytest.approx(expected, abs=1e-9)
    predicted = logits.argmax(1)
    with matrix.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["true / predicted", *DIGITS]
    assert [row[0] for row in rows[1:]] == DIGITS
    counts = [[int(cell) for cell in row[1:]] for row in rows[1:]]
    np.testing.assert_array_equal(counts, confusion_matrix(targets, predicted))
    recall = 100 * recall_score(targets, predicted, average=None)
    assert [row["top1"] for row in report["classes"]] == pytest.approx(recall.tolist())


def test_the_report_says_what_and_how(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run_json(main, tmp_path / "r.json", digits, "-b", 100)
    assert (report["data"], report["split"], report["model"]) == (["digits"], "val", str(digits))
    assert report["batch_size"] == 100
    assert report["images_per_second"] > 0
    assert report["model_images_per_second"] >= report["images_per_second"]
    assert report["machine"]["threads"] == torch.get_num_threads()
    printed = capsys.readouterr().out
    assert f"top-1 {report['top1']:.2f} %, top-5 {report['top5']:.2f} %" in printed
    assert report["machine"]["machine"] in printed


def test_the_moving_average_is_used_where_there_is_one(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "ema.pth", seed=0, ema_seed=2)
    found = {}
    for option, use_ema in (("--use-ema", True), ("--no-use-ema", False)):
        report = run_json(main, tmp_path / "r.json", path, option)
        targets, logits = reference(path, ["digits"], use_ema)
        assert report["top1"] == pytest.approx(100 * top_k_accuracy_score(targets, logits, k=1))
        assert report["weights"] == ("model_ema" if use_ema else "model")
        found[use_ema] = report["top1"]
    assert found[True] != found[False]
    assert run_json(main, tmp_path / "r.json", path)["top1"] == found[True]


def test_classes_go_by_name(tmp_path: Path) -> None:
    """Of five classes the data has the second and the fourth: in a list of its own, 0 and 1."""
    path = checkpoint(tmp_path / "best.pth", classes=list("abcde"), config=None)
    data = folder(tmp_path / "data", b=20, d=20)
    matrix = tmp_path / "confusion.csv"
    report = run_json(main, tmp_path / "r.json", path, "--data", data, "--confusion-csv", matrix)
    targets, logits = reference(path, [str(data)], classes=list("abcde"))
    assert set(targets) == {1, 3}
    assert report["top1"] == pytest.approx(100 * float((logits.argmax(1) == targets).mean()))
    assert [row["images"] for row in report["classes"]] == [0, 20, 0, 20, 0]
    assert report["classes"][0]["top1"] is None
    assert report["top5"] is None  # of five classes it would say nothing


def test_the_splits_are_those_of_the_training(tmp_path: Path) -> None:
    """Not the folders train and val, which lie beside them."""
    data = tmp_path / "data"
    for split, counts in (("fold1", (4, 4)), ("test", (1, 2)), ("train", (9, 9)), ("val", (8, 8))):
        folder(data, split, a=counts[0], b=counts[1])
    config = {"data": [str(data)], "train_split": "fold1", "val_split": "test"}
    path = checkpoint(tmp_path / "best.pth", classes=list("ab"), config=config)
    report = run_json(main, tmp_path / "r.json", path)
    assert (report["split"], report["images"]) == ("test", 3)
    assert run_json(main, tmp_path / "r.json", path, "--split", "val")["images"] == 16
    neighbours = run_json(knn.main, tmp_path / "k.json", path, "-k", 1)
    assert (neighbours["train_images"], neighbours["val_images"]) == (8, 3)
    bad = checkpoint(tmp_path / "bad.pth", config={"data": ["digits"], "val_split": 5})
    with pytest.raises(UserError, match=r"bad\.pth: its config\.val_split is not a text"):
        main([str(bad)])


def test_timms_weights_and_the_names_of_imagenet(tmp_path: Path) -> None:
    """Of three images two lie in the folder of the class that timm's model sees."""
    theirs = timm.create_model("resmlp_12_224", img_size=64).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.manual_seed(0)))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    transform = timm.data.create_transform(
        (3, 64, 64), interpolation="bicubic", crop_pct=0.9, mean=MEAN, std=STD
    )
    names = timm.data.ImageNetInfo().label_names()
    data = tmp_path / "data"
    for index, shift in enumerate([0, 0, 1]):
        drawn = image(tmp_path / f"{index}.png", seed=index, size=80)
        with Image.open(drawn) as picture, torch.no_grad():
            seen = int(theirs(transform(picture)[None]).argmax())
        folder_of_class = data / "val" / names[(seen + shift) % 1000]
        folder_of_class.mkdir(parents=True, exist_ok=True)
        drawn.rename(folder_of_class / drawn.name)
    report = run_json(
        main, tmp_path / "r.json", "--model", "resmlp_s12", "--weights", tmp_path / "timm.pth",
        "--img-size", 64, "--data", data,
    )  # fmt: skip
    assert report["top1"] == pytest.approx(200 / 3)
    assert [row["name"] for row in report["classes"]] == names
    assert report["data_config"]["crop_pct"] == 0.9


def test_models_of_timm_are_evaluated_in_their_size_for_tests(tmp_path: Path) -> None:
    """As timm's validate.py does, with the same option for the size of their training."""
    model = timm.create_model("resnet10t", num_classes=2)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    data = folder(tmp_path / "data", "val", cat=1, dog=1)
    words = ["--model", "resnet10t", "--weights", tmp_path / "w.pth", "--num-classes", 2,
             "--data", data]  # fmt: skip
    for flags, is_test in (([], True), (["--use-train-size"], False)):
        report = run_json(main, tmp_path / "r.json", *words, *flags)
        config = timm.data.resolve_model_data_config(model, use_test_size=is_test)
        assert report["data_config"] == json.loads(json.dumps(config))
        assert report["data_config"]["input_size"] == ([3, 224, 224] if is_test else [3, 176, 176])


def test_the_classifier_of_the_hub_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm does that for another number of classes; the images would be classified at random."""
    in21k, dino = "vit_tiny_patch16_224.augreg_in21k", "vit_small_patch14_dinov2.lvd142m"

    def build(_: str, num_classes: int, **more: Any) -> None:
        raise UserError(f"made for {num_classes}")

    monkeypatch.setattr(classifier, "build_model", build)
    for main_of, name, number, message in (
        (main, "resmlp_s12", 10, "resmlp_s12 --pretrained: .* 1000 classes and the model 10: give"),
        (main, in21k, 1000, "its classifier has 21843 .* the model 1000: give --num-classes 21843"),
        (main, dino, None, "its classifier has 0 .* the model 1000: give weights that have one"),
        (main, in21k, None, "made for 21843"),
        (main, "resmlp_s12", None, "made for 1000"),
        (knn.main, dino, None, "made for 1000"),  # which are not used
    ):
        words = ["-m", name, "--pretrained", "--data", "digits"]
        with pytest.raises(UserError, match=message):
            main_of([*words, *([] if number is None else ["--num-classes", str(number)])])


def test_a_model_that_does_not_take_the_images_is_named(tmp_path: Path) -> None:
    """Before any image is read."""
    torch.save(timm.create_model("test_convnext", num_classes=2).state_dict(), tmp_path / "w.pth")
    words = ["--model", "test_convnext", "--weights", tmp_path / "w.pth", "--num-classes", 2,
             "--img-size", 8]  # fmt: skip
    for main_of, more in (
        (main, ["--data", folder(tmp_path / "data", cat=1, dog=1)]),
        (predict.main, ["--on-error", "skip", image(tmp_path / "0.png")]),
        (export.main, ["--output", tmp_path / "m.onnx"]),
    ):
        with pytest.raises(UserError, match=r"w\.pth does not take images of 8 x 8 pixels .--img"):
            main_of([*map(str, [*words, *more])])


def test_weights_without_names_take_the_names_of_the_data(tmp_path: Path) -> None:
    torch.save(create_model("resmlp_tiny", num_classes=10).state_dict(), tmp_path / "w.pth")
    words = ["--model", "resmlp_tiny", "--weights", tmp_path / "w.pth", "--data", "digits"]
    report = run_json(main, tmp_path / "r.json", *words, "--num-classes", 10)
    assert [row["name"] for row in report["classes"]] == DIGITS
    torch.save(create_model("resmlp_tiny", num_classes=7).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"digits has 10 classes, but .* has 7"):
        main([*map(str, words), "--num-classes", "7"])


def always_first(model: Any) -> Any:
    """A model that scores its first output highest, whatever it sees."""
    with torch.no_grad():
        model.get_classifier().weight.zero_()
        model.get_classifier().bias.zero_()
        model.get_classifier().bias[0] = 1
    return model


def test_a_class_map_gives_the_order_of_weights_without_names(tmp_path: Path) -> None:
    """timm numbers the folders 2, 10, torchvision 10, 2; with a map, neither is assumed."""
    model = always_first(create_model("resmlp_tiny", num_classes=2, img_size=8, patch_size=2))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    data = folder(folder(tmp_path / "data", "train", **{"10": 1, "2": 1}), **{"10": 1, "2": 3})
    words = ["--model", "resmlp_tiny", "--weights", tmp_path / "w.pth", "--img-size", 8,
             "--patch-size", 2, "--data", data]  # fmt: skip
    with pytest.raises(UserError, match=r"timm sorts these classes 2, 10, .*torchvision 10, 2: "):
        main([*map(str, words), "--num-classes", "2"])
    contents = {"a.txt": "2\n10\n \n\n", "b.json": '["2", "10"]', "c.json": '{"10": 1, "2": 0}'}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        report = run_json(main, tmp_path / "r.json", *words, "--class-map", tmp_path / name)
        assert report["top1"] == 75
        assert [row["name"] for row in report["classes"]] == ["2", "10"]
    predict.main([*map(str, words[:-2]), str(data / "val/2/0.png"), "--class-map",
                  str(tmp_path / "a.txt"), "--output", str(tmp_path / "p.csv")])  # fmt: skip
    assert (tmp_path / "p.csv").read_text().splitlines()[1].split(",")[1] == "2"
    wrong = {
        "a.txt": "2\n10\n2\n",
        "b.json": '{"2": 0, "10": 2}',
        "c.json": '{"2": [0]}',
        "d.json": '{"2": 0, "3": 0, "10": 1}',
    }
    for name, content in wrong.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=f"{name}: expected the name of each class"):
            main([*map(str, words), "--class-map", str(tmp_path / name)])
    (tmp_path / "map.pkl").write_bytes(b"\x80\x04]\x94.")
    with pytest.raises(UserError, match=r"map.pkl is not a text in UTF-8: write one name a line"):
        main([*map(str, words), "--class-map", str(tmp_path / "map.pkl")])
    (tmp_path / "a.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match=r"a.txt names 3 classes, but --num-classes is 2"):
        main([*map(str, words), "--class-map", str(tmp_path / "a.txt"), "--num-classes", "2"])


def test_weights_may_have_the_names_of_their_classes(tmp_path: Path) -> None:
    """As our checkpoints have, in any order; --class-map wins, and empty it is not given."""
    model = always_first(create_model("resmlp_tiny", num_classes=2, img_size=8, patch_size=2))
    path = tmp_path / "w.pth"
    checkpoint(path, ["2", "10"], model=model.state_dict())
    data = folder(folder(tmp_path / "data", "train", **{"10": 1, "2": 1}), **{"10": 1, "2": 3})
    words = ["--model", "resmlp_tiny", "--weights", path, "--num-classes", 2, "--img-size", 8,
             "--patch-size", 2, "--data", data]  # fmt: skip
    for given, names, top1 in (([""], ["2", "10"], 75), (["10", "2"], ["10", "2"], 25)):
        (tmp_path / "map.txt").write_text("\n".join(given))
        class_map = tmp_path / "map.txt" if all(given) else ""
        report = run_json(main, tmp_path / "r.json", *words, "--class-map", class_map)
        assert ([row["name"] for row in report["classes"]], report["top1"]) == (names, top1)
    checkpoint(path, ["2", "10", "1"], model=model.state_dict())
    with pytest.raises(UserError, match=r"w.pth names 3 classes, but --num-classes is 2"):
        main([str(word) for word in words])


def test_weights_bring_the_preparation_of_their_training(tmp_path: Path) -> None:
    """As the same file does without --model."""
    config = {
        "input_size": (3, 32, 32), "mean": (0.1, 0.2, 0.3), "std": (0.9, 0.8, 0.7),
        "interpolation": "nearest", "crop_pct": 0.7,
    }  # fmt: skip
    ours = checkpoint(tmp_path / "ours.pth", size=32, data_config=config)
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=10)
    args = {"name": "timm:test_convnext", "num_classes": 10}
    entries: dict[str, Any] = {"model": model.state_dict(), "model_args": args}
    theirs = checkpoint(tmp_path / "timm.pth", data_config=config, **entries)
    data = ["--data", "digits"]
    for path, words in (
        (ours, ["--model", "resmlp_tiny", "--img-size", 32, "--patch-size", 2]),
        (theirs, ["--model", "timm:test_convnext"]),
    ):
        expected = run_json(main, tmp_path / "1.json", path, *data)
        words += ["--weights", path, "--num-classes", 10]
        found = run_json(main, tmp_path / "2.json", *words, *data)
        assert found["data_config"] == expected["data_config"] == json.loads(json.dumps(config))
        assert found["top1"] == expected["top1"]
    found = run_json(main, tmp_path / "2.json", *words, "--img-size", 64, "--crop-pct", 1, *data)
    assert found["data_config"] == json.loads(
        json.dumps({**config, "input_size": (3, 64, 64), "crop_pct": 1.0})
    )


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("name", ["resmlp_12_224", "test_convnext"])
def test_a_folder_of_the_hub_brings_names_and_preparation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, is_old: bool
) -> None:
    """timm's config.json beside the weights has them, and in old ones all is at the top."""
    caplog.set_level("INFO")
    sizes = {"img_size": 32} if name == "resmlp_12_224" else {}
    model = always_first(timm.create_model(name, num_classes=3, **sizes))
    given = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1], "crop_pct": 0.7}
    model.pretrained_cfg |= given
    names = ["dog", "cat", "bird"]
    labels = dict(enumerate(names)) if is_old else names
    hub = tmp_path / "hub"
    timm.models.save_for_hf(
        model, str(hub), model_config={"label_names": labels}, safe_serialization=True
    )
    config = json.loads((hub / "config.json").read_text())
    if is_old:
        config |= config.pop("pretrained_cfg")
        config["labels"] = config.pop("label_names")
        # as editors of Windows write it
        (hub / "config.json").write_text(json.dumps(config), encoding="utf-8-sig")
    data = folder(tmp_path / "data", "val", bird=1, cat=1, dog=2)
    words = ["--model", name, "--num-classes", 3, "--data", data]
    words += ["--img-size", 32] if sizes else []
    for weights in (hub, hub / "model.safetensors"):
        report = run_json(main, tmp_path / "r.json", *words, "--weights", weights)
        assert ([row["name"] for row in report["classes"]], report["top1"]) == (names, 50)
        assert report["data_config"].items() >= given.items()
    assert "in the order of their letters" not in caplog.text
    other = build_model(name, num_classes=3, **sizes)
    assert load_weights(other, hub).classes == names
    (hub / "config.json").unlink()
    report = run_json(main, tmp_path / "r.json", *words, "--weights", hub)
    assert ([row["name"] for row in report["classes"]], report["top1"]) == (sorted(names), 25)
    assert "hub has no names of classes: they are taken in the order of their" in caplog.text
    (hub / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json is not JSON with the settings of a model"):
        load_weights(other, hub)


def test_classes_that_timm_cannot_sort_have_one_order(tmp_path: Path) -> None:
    """timm takes a superscript for a number, and fails."""
    with pytest.raises(ValueError, match="invalid literal"):
        timm.utils.misc.natural_key("²")
    model = create_model("resmlp_tiny", num_classes=2, img_size=8, patch_size=2)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    data = folder(tmp_path / "data", **{"a": 1, "²": 1})
    words = ["--model", "resmlp_tiny", "--weights", tmp_path / "w.pth", "--num-classes", 2,
             "--img-size", 8, "--patch-size", 2, "--data", data / "val"]  # fmt: skip
    report = run_json(main, tmp_path / "r.json", *words)
    assert [row["name"] for row in report["classes"]] == ["a", "²"]


def test_a_folder_of_classes_is_evaluated_as_it_is(tmp_path: Path) -> None:
    """As with timm's validate.py; also without an option before the folder."""
    path = checkpoint(tmp_path / "best.pth", classes=list("ab"))
    data = folder(folder(tmp_path / "data", "train", a=2, b=2), "test", a=3, b=4)
    expected = run_json(main, tmp_path / "r.json", path, data, "--split", "test")
    found = run_json(main, tmp_path / "r.json", path, "--data", data / "test")
    assert (found["top1"], found["images"]) == (expected["top1"], 7)
    with pytest.raises(UserError, match=r"no folder .*data/val .*which has test, train; other"):
        main([str(path), str(data)])
    (data / "train").rename(data / "holdout")
    with pytest.raises(UserError, match=r"which has holdout, test; other names go to .*--split"):
        main([str(path), str(data)])
    with pytest.raises(UserError, match=r"--data is given, and .*data too: leave out one"):
        main([str(path), str(data), "--data", "digits"])
    with pytest.raises(UserError, match=r"best\.pth is a file: give a folder, cifar10-tar FILE"):
        main([str(path), str(path)])
    with pytest.raises(UserError, match=r"data is a folder: give the best\.pth or last.pth"):
        main([str(data)])


def test_another_resolution_is_adapted_as_load_weights_does(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "best.pth", size=8)
    report = run_json(main, tmp_path / "r.json", path, "--img-size", 12, "--crop-pct", 0.75)
    assert report["data_config"]["input_size"] == [3, 12, 12]
    _, saved = load_model(path)
    larger = create_model("resmlp_tiny", num_classes=10, img_size=12, patch_size=2).eval()
    load_weights(larger, saved)
    config = {**saved["data_config"], "input_size": (3, 12, 12), "crop_pct": 0.75}
    dataset = create_dataset(["digits"], "val", create_transform(config))
    images, targets, _ = collate([dataset[index] for index in range(len(dataset))])
    with torch.no_grad():
        accuracy = (larger(images).argmax(1) == targets).double().mean()
    assert report["top1"] == pytest.approx(100 * float(accuracy))


def test_bad_images_stop_the_command_or_are_counted(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder(tmp_path / "data", **{"1": 3, "2": 3})
    bad = data / "val" / "1" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    (data / "val" / "2" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1/1\.png: .* --on-error skip"):
        main([str(digits), "--data", str(data), "--workers", "0"])
    report = run_json(main, tmp_path / "r.json", digits, "--data", data, "--on-error", "skip")
    assert report["images"] == 4
    assert report["skipped"][str(data / "val" / "2" / "0.png")] == "the file is empty"
    assert str(bad) in report["skipped"]
    assert "2 images could not be read" in capsys.readouterr().out


def test_models_for_any_size_are_evaluated_in_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of convolutions has no argument for it; a ViT of timm is made for one size."""
    data = folder(tmp_path / "data", **{"1": 1, "2": 1})
    for name, size in (("test_resnet", 32), ("test_vit", 160)):
        model = timm.create_model(name, num_classes=10).state_dict()
        config = {"input_size": (3, size, size), "mean": MEAN, "std": STD,
                  "interpolation": "bicubic", "crop_pct": 1.0}  # fmt: skip
        args = {"name": name, "num_classes": 10}
        checkpoint(tmp_path / f"{name}.pth", model=model, model_args=args, data_config=config)
    path = tmp_path / "test_resnet.pth"
    report = run_json(main, tmp_path / "r.json", path, "--data", data, "--img-size", 48)
    assert report["data_config"]["input_size"] == [3, 48, 48]
    words = [path, "--img-size", 48]
    predict.main([*map(str, [*words, data / "val/1/0.png"])])
    assert "predictions" in capsys.readouterr().out
    export.main([*map(str, [*words, "--output", tmp_path / "m.onnx"])])
    assert "(3, 48, 48)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"test_vit\.pth has the model test_vit, which is made for"):
        main([str(tmp_path / "test_vit.pth"), "--img-size", "48"])


def test_other_classes_than_imagenets_need_a_class_map(tmp_path: Path) -> None:
    """If the weights have no names: ImageNet's were only assumed."""
    sizes = {"img_size": 8, "patch_size": 4}
    torch.save(create_model("resmlp_tiny", 1000, **sizes).state_dict(), tmp_path / "w.pth")
    data = folder(tmp_path / "data", cat=1, dog=1)
    words = ["--model", "resmlp_tiny", "--weights", tmp_path / "w.pth", "--img-size", 8,
             "--patch-size", 4, "--data", data]  # fmt: skip
    message = (
        r"w\.pth, taken for ImageNet's because it has no names of classes, knows 1000 classes that "
        r"are not the 2 of --data \(n01440764, .* and cat, dog\): name them .* --class-map FILE\.$"
    )
    with pytest.raises(UserError, match=message):
        main([*map(str, words)])


def test_the_reason_for_two_orders_is_not_guessed() -> None:
    """Capitals come first in torchvision; the shown names begin where the orders part."""
    names = ["Zebra", "apple", *(f"m{number}" for number in range(8)), "n10", "n2"]
    message = "w has no names of classes, and timm sorts these classes {}, torchvision {}: name"
    for classes, theirs, ours in (
        (names[:2], "apple, Zebra", "Zebra, apple"),
        (names[1:], "n2, n10", "n10, n2"),
    ):
        with pytest.raises(UserError, match=message.format(theirs, ours)):
            check_order(classes, "w")


def test_names_of_classes_are_printed_as_they_are() -> None:
    """Also if they look like numbers."""
    names = ["007", "1e3", "3.10", "nan", "1_000"]
    rows = [evaluation.ClassReport(name, 4, 50.0, None, 12.345) for name in names]
    machine = {"machine": "m", "device": "cpu", "threads": 1}
    report = evaluation.Report(
        "m", "model", ["d"], "val", {}, 20, {}, 50.0, None, rows, 1, 1, 1, 0, machine
    )
    lines = evaluation.text_of(report).splitlines()[-len(names) :]
    assert [line.split() for line in lines] == [
        [name, "4", "50.00", "-", "12.35"] for name in names
    ]


def test_nothing_but_bad_images(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "data/val/1").mkdir(parents=True)
    (tmp_path / "data/val/1/0.png").touch()
    words = [digits, "--data", tmp_path / "data", "--workers", "0", "--on-error", "skip"]
    with pytest.raises(UserError, match="none of its images could be read"):
        main([*map(str, words)])


@pytest.mark.parametrize("classes", [10, 60])
def test_the_picture_is_a_png(classes: int, tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(classes)]
    path = checkpoint(tmp_path / "best.pth", classes=names)
    data = folder(tmp_path / "data", **{"00": 2, "03": 1})
    picture = tmp_path / "confusion.png"
    main([*map(str, (path, "--data", data, "--confusion-png", picture, "--workers", "0"))])
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 500


@pytest.mark.parametrize("count", [3, 60])
def test_the_picture_says_what_it_shows(count: int, tmp_path: Path) -> None:
    """Whatever the classes are called: dollars begin mathematics in matplotlib."""
    names = ["$1$", "caf\udce9", "a_b^{", *map(str, range(3, count))]
    rows = [evaluation.ClassReport(name, 4, 50.0, None, None) for name in names]
    report = evaluation.Report(
        "run_$x$/best_$1$.pth", "model", ["d"], "val", {}, 12, {}, 50.0, None, rows, 1, 1, 1, 0, {}
    )
    confusion = np.zeros((count, count), dtype=np.int64)
    confusion[0, :2] = 1, 3
    figure = evaluation.confusion_figure(confusion, report)
    figure.canvas.draw()
    axes, bar = figure.axes
    assert axes.get_title() == r"best_\$1\$.pth, 12 images, top-1 50.00 %"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted label", "True label")
    assert bar.get_ylabel() == "share of the images of the true class"
    assert axes.images[0].get_array()[0, :2].tolist() == [0.25, 0.75]
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == ([r"\$1\$", "caf?", "a_b^{"] if count == 3 else [])


def test_int8_is_for_cpus(digits: Path) -> None:
    """The device may be the default one, which nobody has named."""
    choice = evaluation_options.parse(
        evaluation_options.EvaluationOptions, [str(digits)], "evaluate", ""
    )
    message = "^--dtype int8 is for CPUs, not for cuda: give --device cpu, or --dtype bfloat16.$"
    with pytest.raises(UserError, match=message):
        classifier.load_classifier(choice, torch.device("cuda"), "int8")


def test_mistakes_are_one_sentence(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "bare.pth")
    no_classes = checkpoint(tmp_path / "no_classes.pth", classes=DIGITS)
    state = torch.load(no_classes)
    save({**state, "classes": []}, no_classes)
    changed = tmp_path / "changed.pth"
    torch.save({**state, "classes": list("abcdefghij")}, changed)
    nan = {name: tensor * torch.nan for name, tensor in state["model"].items()}
    save({**state, "model": nan}, tmp_path / "nan.pth")
    other = checkpoint(tmp_path / "other.pth", classes=list("abcdefghij"))
    unknown = checkpoint(tmp_path / "unknown.pth", config=None)
    (tmp_path / "empty/val").mkdir(parents=True)
    (tmp_path / "classes/val/1").mkdir(parents=True)
    weird = folder(tmp_path / "weird", cat=1)
    weights, headless = tmp_path / "weights.pth", tmp_path / "headless.pth"
    tiny = create_model("resmlp_tiny", 10).state_dict()
    torch.save(tiny, weights)
    torch.save({k: v for k, v in tiny.items() if not k.startswith("head.")}, headless)
    named = ("--model", "resmlp_tiny")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((), "no model: give a checkpoint"),
        ((digits, "--weights", "x"), "leave out --model"),
        ((*named, "--weights", weights), "10 classes and the model 1000: give --num-classes 10"),
        ((*named, "--weights", headless), "has no classifier: give weights that have one"),
        ((tmp_path / "missing.pth",), r"missing\.pth cannot be read: No such file"),
        ((tmp_path / "text.pth",), r"text\.pth cannot be read because it is damaged"),
        ((tmp_path / "bare.pth",), r"bare\.pth is not a checkpoint"),
        ((no_classes,), r"no_classes\.pth has no class names"),
        ((changed,), r"changed\.pth is damaged: its contents differ"),
        ((digits, "--device", "nonsense"), "--device nonsense is not a device of PyTorch"),
        ((tmp_path / "nan.pth",), r"nan\.pth computes values that are not finite numbers"),
        ((other, "--data", "digits"), r"has the classes 0, 1, 2, .* knows a, b, c"),
        ((unknown,), "no images: give --data"),
        ((digits, "--data", tmp_path / "nowhere"), "there is no folder .*nowhere"),
        ((digits, "--data", tmp_path / "empty"), r"empty/val"),
        ((digits, "--data", tmp_path / "classes"), r"classes/val holds no images"),
        ((digits, "--data", weird), "weird/val has classes that training lacks .cat"),
        ((digits, "--split", "test"), "train and val, but not test"),
        ((digits, "--json", tmp_path / "nowhere/r.json"), r"r\.json cannot be written"),
        ((digits, "--json", digits / "r.json"), r"r\.json cannot be written .Not a directory"),
        ((digits, "--json", tmp_path), "cannot be written .Is a directory"),
        ((digits, "--confusion-csv", tmp_path), "cannot be written .Is a directory"),
    ]
    for words, expected in cases:
        with pytest.raises(UserError, match=expected) as caught:
            main([*map(str, words), "--workers", "0"])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "changes", "message"),
    [
        ("data_config", None, "data_config .* is not usable"),
        ("data_config", {"input_size": 5}, "data_config .* is not usable"),
        ("data_config", {"input_size": [1, 8, 8]}, "expected the 3 channels of the model"),
        ("data_config", {"mean": [0.5, "x", 0.5]}, "data_config .* is not usable"),
        ("data_config", {"mean": [0.5, 0.5]}, "data_config .* is not usable"),
        ("data_config", {"std": [0.5, 0, 0.5]}, "a std above 0"),
        ("data_config", {"std": []}, "data_config .* is not usable"),
        ("classes", ["a", "b", "c"], "3 class names, .* one for each of the 10 outputs"),
        ("classes", [*range(9), [2]], "class names, which must be texts"),
        ("config", {"data": 5}, "config.data is not a list of texts"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--img-size", "8"]])
def test_what_a_checkpoint_says_of_images_is_checked(
    entry: str, changes: Any, message: str, options: list[str], digits: Path, tmp_path: Path
) -> None:
    state = torch.load(digits)
    if entry == "data_config":
        changes = {} if changes is None else state[entry] | changes
    elif entry == "config":
        changes = state[entry] | changes
    save({**state, entry: changes}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message) as caught:
        main([str(tmp_path / "x.pth"), *options])
    assert "x.pth" in str(caught.value)


@pytest.mark.parametrize(
    "words",
    ["--batch-size 0", "--workers -1", "--crop-pct 1.5", "--img-size x"],
)
def test_wrong_options_are_a_usage_error(
    words: str, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(digits), *words.split()])
    assert caught.value.code == 2
    assert words.split()[0] in capsys.readouterr().err


def test_a_failed_run_leaves_the_earlier_report(digits: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    report.write_text("earlier")
    with pytest.raises(UserError):
        main([str(digits), "--data", str(tmp_path), "--json", str(report)])
    assert report.read_text() == "earlier"
    assert not list(tmp_path.glob(".*"))


def test_a_link_keeps_pointing_to_the_report(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "r.json")
    run_json(main, tmp_path / "link.json", digits, "-b", 360)
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "r.json").is_file()


def test_a_training_goes_through_all_commands(tmp_path: Path) -> None:
    """A few epochs on the digits: far above chance; then another head on the same layers."""
    common = ["--model", "resmlp_tiny", "--patch-size", 2, "--warmup-epochs", 0]
    train([*map(str, [*common, "--epochs", 6, "--model-ema", "--model-ema-decay", 0.9,
                      "--no-progress", "--output", tmp_path / "run"])])  # fmt: skip
    [best] = (tmp_path / "run").rglob("best.pth")
    report = run_json(main, tmp_path / "r.json", best)
    assert report["weights"] == "model_ema"
    assert report["top1"] > 30
    neighbours = run_json(knn.main, tmp_path / "k.json", best)
    assert neighbours["scores"][0]["top1"] > 60
    digit = create_dataset(["digits"], "val")
    image, _ = digit[0]
    image.save(tmp_path / "digit.png")
    predict.main(
        [str(best), str(tmp_path / "digit.png"), "--workers", "0", "--output",
         str(tmp_path / "p.jsonl")]
    )  # fmt: skip
    assert '"label"' in (tmp_path / "p.jsonl").read_text()

    data = folder(tmp_path / "data", a=2, b=2)
    folder(data, "train", a=8, b=8)
    train([*map(str, [*common, "--epochs", 1, "--weights", best, "--reset-head", "--data", data,
                      "--img-size", 8, "--batch-size", 8, "--no-progress", "--workers", 0,
                      "--output", tmp_path / "two"])])  # fmt: skip
    [best] = (tmp_path / "two").rglob("best.pth")
    report = run_json(main, tmp_path / "r.json", best)
    assert [row["name"] for row in report["classes"]] == ["a", "b"]
