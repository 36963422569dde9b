"""The votes of nearest neighbours are DINO's."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from resmlp_mt.errors import UserError
from resmlp_mt.vision import evaluate
from resmlp_mt.vision.data import create_dataset
from resmlp_mt.vision.factory import load_model
from resmlp_mt.vision.images import collate
from resmlp_mt.vision.knn import main
from resmlp_mt.vision.neighbours import ranked
from resmlp_mt.vision.transforms import create_transform
from vision_checkpoints import DIGITS, checkpoint, folder, random_model, run_json


def test_low_temperatures_leave_votes() -> None:
    """exp(1 / 1e-6) is beyond float64, and so is exp(-0.3 / 1e-4) on the other side."""
    keys = np.eye(3, dtype=np.float32)
    query = np.array([[0.0, 0.7, 0.7001]], dtype=np.float32)
    for temperature in (1e-6, 1e-4):
        (found,) = ranked(query, keys, np.array([4, 1, 2]), [3], temperature)
        assert found[0, 0] == 2


def dino(
    keys: np.ndarray, labels: list[int], query: np.ndarray, k: int, temperature: float
) -> list[int]:
    """The classes that DINO's evaluation counts for the top 5 (section 4 and appendix F.1)."""
    cosines = keys @ query
    votes = [0.0] * (max(labels) + 1)
    for index in sorted(range(len(keys)), key=lambda index: -cosines[index])[:k]:
        votes[labels[index]] += math.exp(cosines[index] / temperature)
    return sorted(range(len(votes)), key=lambda label: -votes[label])[: min(5, k)]


@pytest.mark.parametrize(
    ("k", "classes", "temperature"), [(1, 3, 1.0), (4, 10, 0.02), (20, 7, 0.07)]
)
def test_the_top_five_are_dinos(k: int, classes: int, temperature: float) -> None:
    rng = np.random.default_rng(k)
    labels = np.array([*rng.integers(0, classes, 29), classes - 1])
    keys, queries = (rng.normal(size=(size, 3)).astype(np.float32) for size in (30, 13))
    keys, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (keys, queries))
    present = {*labels.tolist()}
    _, top, _ = ranked(queries, keys, labels, [2, k, 30], temperature)
    for query, found in zip(queries, top, strict=True):
        expected = dino(keys, labels.tolist(), query, k, temperature)
        assert found.tolist() == [label for label in expected if label in present]


def test_the_command_equals_scikit_learn_on_the_features(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "best.pth", ema_seed=1)
    report = run_json(main, tmp_path / "r.json", path, "-k", 1, 5, 20, "-b", 200)
    model, saved = load_model(path)
    parts = []
    for split in ("train", "val"):
        dataset = create_dataset(["digits"], split, create_transform(saved["data_config"]))
        images, targets, _ = collate([dataset[index] for index in range(len(dataset))])
        with torch.no_grad():
            features = model.forward_head(model.forward_features(images), pre_logits=True)
            parts += [features.numpy(), targets.numpy()]
    for score in report["scores"]:
        theirs = KNeighborsClassifier(
            score["k"], metric="cosine", algorithm="brute",
            weights=lambda distance: np.exp((1 - distance) / 0.07),
        ).fit(parts[0], parts[1])  # fmt: skip
        assert score["top1"] == pytest.approx(100 * theirs.score(parts[2], parts[3]), abs=0.3)
    assert [score["k"] for score in report["scores"]] == [1, 5, 20]
    first, *others = report["scores"]
    assert first["top5"] == first["top1"]
    assert all(score["top5"] > score["top1"] for score in others)
    assert (report["train_images"], report["val_images"]) == (1437, 360)
    assert (report["temperature"], report["weights"]) == (0.07, "model_ema")


def test_classes_need_not_be_those_of_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frozen features serve other data; a copy of a training image is its own neighbour."""
    path = checkpoint(tmp_path / "best.pth")
    data = folder(folder(tmp_path / "data", "train", cat=3, dog=3, emu=3), dog=3, emu=3)
    for name, source in (("dog", "dog"), ("emu", "emu")):
        for index in range(3):
            copy = data / "train" / source / f"{index}.png"
            (data / "val" / name / f"{index}.png").write_bytes(copy.read_bytes())
    (data / "val" / "emu" / "0.png").write_bytes(b"bad")
    (data / "val").rename(data / "held-out")
    words = ["--data", data, "--val-split", "held-out", "-k", 1, "--on-error", "skip"]
    report = run_json(main, tmp_path / "r.json", path, *words)
    assert report["scores"] == [{"k": 1, "top1": 100.0, "top5": None}]
    assert report["val_images"] == 5
    assert len(report["skipped"]) == 1
    assert "k 1: top-1 100.00 %\n1 images could not be read" in capsys.readouterr().out


def test_weights_need_no_classifier(tmp_path: Path) -> None:
    """And may have any: the features come before it."""
    data = folder(folder(tmp_path / "data", "train", a=4, b=4, c=4), a=3, b=3, c=3)
    state = random_model(
        0, name="resmlp_tiny", num_classes=10, img_size=8, patch_size=2
    ).state_dict()
    features = {key: value for key, value in state.items() if not key.startswith("head.")}
    assert len(state) == len(features) + 2
    words = ["--model", "resmlp_tiny", "--img-size", 8, "--patch-size", 2, "--data", data]
    found = []
    for name, weights in {
        "all": state, "features": features, "named": {"model": state, "classes": DIGITS}
    }.items():  # fmt: skip
        torch.save(weights, tmp_path / f"{name}.pth")
        words_of = [*words, "--weights", tmp_path / f"{name}.pth", "-k", 1, 3]
        found.append(run_json(main, tmp_path / "r.json", *words_of)["scores"])
    assert found[0] == found[1] == found[2]
    with pytest.raises(UserError, match=r"features.pth has no classifier: give weights that"):
        evaluate.main([*map(str, words), "--weights", str(tmp_path / "features.pth")])


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "best.pth")
    data = folder(folder(tmp_path / "data", "train", a=2, b=2), c=1)
    small = folder(folder(tmp_path / "small", "train", a=2, b=2), a=1)
    no_train = folder(tmp_path / "no_train", a=1)
    for words, expected in (
        (["--data", data], "val has classes that training lacks .c"),
        (["--data", small, "-k", "5"], "-k 5 is more than the 4 training images"),
        (
            ["--data", no_train],
            r"no folder .*no_train/train .*which has val; other names go to --tr",
        ),
        (["--json", tmp_path / "nowhere/r.json"], "cannot be written"),
    ):
        with pytest.raises(UserError, match=expected) as caught:
            main([str(path), *map(str, words), "--workers", "0"])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", ["-k 0", "--temperature 0", "--temperature nan"])
def test_wrong_options_are_a_usage_error(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["best.pth", *words.split()])
    assert caught.value.code == 2
    assert words.split()[0] in capsys.readouterr().err
