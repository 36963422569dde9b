"""Checkpoints of the image models: complete or absent, and read without running code."""

import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from resmlp_mt.errors import UserError
from resmlp_mt.vision import checkpoints, factory

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


def test_timm_models_are_built_by_name() -> None:
    model = factory.build_model("timm:test_convnext", num_classes=3)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "more"),
    [("resmlp_s13", {}), ("timm:no_such_net", {}), ("resmlp_tiny", {"mixing": "x"}),
     ("resmlp_tiny", {"depths": 3})],
)  # fmt: skip
def test_models_that_do_not_exist_are_refused(name: str, more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--model {name}: "):
        factory.build_model(name, num_classes=3, **more)


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


class Harmful:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('this ran')",)


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with pytest.raises(UserError, match=r"x\.pth cannot be read: No such file"):
        checkpoints.load(path)
    checkpoints.save(state(), path)
    content = path.read_bytes()
    for broken in (b"", b"no checkpoint", content[:10_000], content[:-100]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"x\.pth was not loaded because it is damaged"):
            checkpoints.load(path)
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UserError, match="was not loaded because"):
        checkpoints.load(path)
    torch.save(state()["model"], path)
    with pytest.raises(UserError, match=r"is not a checkpoint of .*: model is missing"):
        checkpoints.load(path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    checkpoints.save({**state(), "model_args": {**MODEL_ARGS, "num_classes": 4}}, tmp_path / "m")
    with pytest.raises(UserError, match="does not fit its own model_args"):
        factory.load_model(tmp_path / "m")
