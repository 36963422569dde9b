"""Checkpoints of the image models: complete or absent, and read without running code."""

import copy
import pickle
import random
import resource
import socket
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from resmlp_mt.errors import UserError
from resmlp_mt.vision import checkpoints, factory
from resmlp_mt.vision.classifier import load_classifier
from resmlp_mt.vision.evaluation_options import ModelChoice
from vision_checkpoints import Malicious, checkpoint

MODEL_ARGS = {"name": "resmlp_tiny", "num_classes": 3, "img_size": (8, 16), "patch_size": 8}


def state(seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = factory.build_model(**MODEL_ARGS)
    return {"model": model.state_dict(), "model_args": MODEL_ARGS, "classes": ["a", "b", "c"]}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Writing fails beyond ``size`` bytes of a file, in the middle of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved = state()
    path = tmp_path / "new/folder/model.pth"
    checkpoints.save(saved, path)
    assert [file.name for file in path.parent.iterdir()] == ["model.pth"]
    model, checkpoint = factory.load_model(path)
    assert checkpoint["classes"] == ["a", "b", "c"]
    assert checkpoint["model_args"] == MODEL_ARGS
    assert not model.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, saved["model"][name])


def test_the_moving_average_comes_first_unless_declined(tmp_path: Path) -> None:
    saved = {**state(0), "model_ema": state(1)["model"]}
    checkpoints.save(saved, tmp_path / "m.pth")
    for use_ema, part in ((True, "model_ema"), (False, "model")):
        model, _ = factory.load_model(tmp_path / "m.pth", use_ema=use_ema)
        assert torch.equal(model.state_dict()["head.weight"], saved[part]["head.weight"])


@pytest.mark.parametrize("size", [1000, 100_000, 500_000])
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, size: int) -> None:
    path = tmp_path / "last.pth"
    checkpoints.save(state(0), path)
    before = path.read_bytes()
    assert len(before) > 500_000
    with full_disk(size), pytest.raises(UserError) as error:
        checkpoints.save(state(1), path)
    assert str(error.value).startswith(f"{path} cannot be written: ")
    assert "the earlier checkpoint there is kept" in str(error.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/last\.pth cannot be written: ") as error:
        checkpoints.save(state(), tmp_path / "file/last.pth")
    assert "kept" not in str(error.value)


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with pytest.raises(UserError, match=r"x\.pth cannot be read: No such file"):
        checkpoints.load(path)
    checkpoints.save(state(), path)
    content = path.read_bytes()
    for broken in (b"", b"no checkpoint", content[:10_000], content[:-100]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"x\.pth cannot be read because it is damaged"):
            checkpoints.load(path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match="cannot be read because"):
        checkpoints.load(path)
    torch.save(state()["model"], path)
    with pytest.raises(UserError, match=r"is not a checkpoint of .*: model is missing"):
        checkpoints.load(path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    checkpoints.save({**state(), "model_args": {**MODEL_ARGS, "num_classes": 4}}, tmp_path / "m")
    with pytest.raises(UserError, match="does not fit its own model_args"):
        factory.load_model(tmp_path / "m")


def crafted(path: Path, **changes: Any) -> Path:
    """A checkpoint with a right digest and these model_args."""
    saved = state()
    checkpoints.save({**saved, "model_args": {**MODEL_ARGS, **changes}}, path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": True}, "pretrained = True, which is not allowed"),
        ({"pretrained_cfg": {"url": "http://localhost:9/w.pth"}}, "pretrained_cfg"),
        ({"pretrained_cfg_overlay": {"file": "/etc/passwd"}}, "pretrained_cfg_overlay"),
        ({"checkpoint_path": "w.pth"}, "checkpoint_path"),
        ({"cache_dir": "x"}, "cache_dir"),
        ({"name": "timm:hf-hub:someone/model"}, "name = 'timm:hf-hub:someone/model', which"),
        ({"name": "timm:local-dir:folder"}, "name = "),
        ({"name": "../resmlp_tiny"}, "name = "),
        ({"norm": "file:///etc/passwd"}, "norm = "),
        ({"img_size": 10**18}, r"img_size = 1000000000000000000, which is not allowed"),
        ({"img_size": (8, 10**18)}, "img_size = 1000000000000000000"),
        ({"patch_size": 0}, "no model can be built from its model_args"),
        ({"num_classes": 10**18}, "num_classes = 1000000000000000000"),
        ({"num_classes": -5}, "num_classes = -5"),
        ({"num_classes": None}, "do not name a model and its number of classes"),
        ({"name": 7}, "do not name a model"),
        ({"img_size": "8"}, "no model can be built from its model_args"),
        ({"depth": 3}, "no model can be built from its model_args: .*it has no argument depth"),
        ({"name": "timm:vit_tiny_patch16_224", "depth": 100_000}, "depth = 100000, which"),
        (
            {"name": "timm:vit_tiny_patch16_224", "num_heads": 0},
            "no model can be built from its model_args",
        ),
        ({"layer_scale_init": [[[[10**18]]]]}, "layer_scale_init = 1000000000000000000"),
        ({"mixing": "none"}, r"does not fit its own model_args: blocks\.0\.mixing_post\.alpha is"),
    ],
)
def test_nothing_is_opened_or_built_because_a_file_says_so(
    tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", connect)
    path = crafted(tmp_path / "best.pth", **changes)
    with pytest.raises(UserError, match=message) as error:
        factory.load_model(path)
    assert "best.pth" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_changed_checkpoint_is_noticed(tmp_path: Path) -> None:
    """Every tensor, every value and their order count; the file's checksums are right."""
    path = tmp_path / "best.pth"
    checkpoints.save({**state(), "config": {"lr": 0.1, "data": ["digits"]}}, path)
    content = torch.load(path)
    checkpoints.load(path)

    def a_bit(changed: dict[str, Any]) -> None:
        changed["model"]["norm.alpha"].view(torch.int32)[3] ^= 1

    def names(changed: dict[str, Any]) -> None:
        model = changed["model"]
        model["norm.alpha"], model["norm.beta"] = model["norm.beta"], model["norm.alpha"]

    for change in (
        a_bit,
        names,
        lambda changed: changed["classes"].reverse(),
        lambda changed: changed["config"].update(lr=0.2),
        lambda changed: changed["config"].pop("data"),
    ):
        changed = copy.deepcopy(content)
        change(changed)
        torch.save(changed, path)
        with pytest.raises(UserError, match=r"best\.pth is damaged: its contents differ"):
            checkpoints.load(path)


def test_flipped_bits_are_noticed_without_a_digest_too(tmp_path: Path) -> None:
    """Files of version 0.1.0 have no digest, but checksums of their parts."""
    path = tmp_path / "best.pth"
    torch.save(state(), path)
    content = path.read_bytes()
    generator = random.Random(0)
    for _ in range(20):
        damaged = bytearray(content)
        damaged[generator.randrange(2000, len(content) - 10_000)] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(UserError, match=r"best\.pth"):
            checkpoints.load(path)


def test_checkpoints_of_the_first_version_are_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(state(), tmp_path / "best.pth")
    model, _ = factory.load_model(tmp_path / "best.pth")
    assert torch.equal(model.state_dict()["head.weight"], state()["model"]["head.weight"])
    assert "best.pth has no digest (version 0.1.0)" in caplog.text


def test_tensors_that_are_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    saved = state()
    saved["model"]["head.weight"] = torch.zeros(1).expand(10**6, 10**5)
    torch.save(saved, tmp_path / "large.pth")
    with pytest.raises(UserError, match=r"large\.pth has .* bytes, but its tensors claim 100,000,"):
        checkpoints.load(tmp_path / "large.pth")
    with zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(UserError, match=r"small\.pth is a compressed archive"):
        checkpoints.load(tmp_path / "small.pth")
    nested: list[Any] = []
    for _ in range(200):
        nested = [nested]
    torch.save({**state(), "config": {"x": nested}}, tmp_path / "deep.pth")
    with pytest.raises(UserError, match=r"deep\.pth nests its values more than 50 deep"):
        checkpoints.load(tmp_path / "deep.pth")
    saved = {**state(), "classes": "abc"}
    torch.save(saved, tmp_path / "kinds.pth")
    with pytest.raises(UserError, match=r"kinds\.pth is not a checkpoint .*: classes is a str"):
        checkpoints.load(tmp_path / "kinds.pth")


def test_an_image_size_in_a_file_does_not_fill_the_memory(tmp_path: Path) -> None:
    for number, changes in enumerate(
        ({"input_size": (3, 10**9, 8)}, {"crop_pct": 1e-9}, {"interpolation": "x"}, {"mean": 0})
    ):
        path = checkpoint(tmp_path / f"{number}.pth")
        saved = checkpoints.load(path)
        checkpoints.save({**saved, "data_config": {**saved["data_config"], **changes}}, path)
        choice = ModelChoice(checkpoint=path)
        with pytest.raises(UserError, match=rf"{number}\.pth: its data_config .* is not usable"):
            load_classifier(choice, torch.device("cpu"))
    saved["data_config"]["input_size"] = (3, 8, 16)
    checkpoints.save(saved, path)
    with pytest.raises(UserError, match=r"takes images of \(8, 8\) pixels, but its data_config"):
        load_classifier(choice, torch.device("cpu"))
