"""A training that is killed or finds the disk full while it saves can continue."""

import errno
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CheckpointConfig

from conftest import Corpus, train
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import saving
from resmlp_mt.files import NoLocksError
from resmlp_mt.models import resmlp_mt  # noqa: F401  applies the remedies

WEIGHTS = 20_000


def state(update: int) -> dict[str, Any]:
    """A checkpoint whose weights are the number of its update."""
    return {
        "model": {"w": torch.full((WEIGHTS,), float(update))},
        "optimizer_history": [{"num_updates": update}],
        "last_optimizer_state": {"moments": torch.full((2 * WEIGHTS,), float(update))},
    }


def save(folder: Path, update: int) -> None:
    """What fairseq does at the end of an epoch: one file, and copies of it as best and last."""
    trainer = SimpleNamespace(
        data_parallel_rank=0,
        should_save_checkpoint_on_current_rank=True,
        checkpoint_suffix="",
        task=SimpleNamespace(),
        consolidate_optimizer=lambda: None,
        get_num_updates=lambda: update,
        save_checkpoint=lambda name, extra: checkpoint_utils.torch_persistent_save(
            state(update), name
        ),
    )
    epochs = SimpleNamespace(epoch=update, end_of_epoch=lambda: True, state_dict=dict)
    config = CheckpointConfig(save_dir=str(folder), keep_last_epochs=2)
    checkpoint_utils.save_checkpoint.best = 100.0
    checkpoint_utils.save_checkpoint(config, trainer, epochs, 100.0 - update)


def in_a_child(act: Callable[[], None]) -> int:
    """Run in a forked process; returns its status as :func:`os.waitpid` gives it."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # OpenMP's other threads are not there after a fork
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    """Kills the process within its ``number``-th step of writing, copying, renaming or removing."""

    def __init__(self, number: int) -> None:
        self.left = number

    def step(self) -> None:
        if self.left == 0:
            die()
        self.left -= 1

    def install(self, patch: pytest.MonkeyPatch) -> None:
        to_disk = torch.save
        dying = self

        class File:
            def __init__(self, file: Any) -> None:
                self.file = file

            def write(self, content: bytes) -> int:
                half = len(content) // 2
                self.file.write(content[:half])
                self.file.flush()
                dying.step()
                self.file.write(content[half:])
                return len(content)

            def flush(self) -> None:
                self.file.flush()

        def halfway(source: Any, target: Any, **_: Any) -> Any:
            with open(source, "rb") as read, open(target, "wb") as written:
                content = read.read()
                File(written).write(content)
            return target

        patch.setattr(torch, "save", lambda value, file: to_disk(value, File(file)))
        patch.setattr(shutil, "copyfile", halfway)
        for name in ("fsync", "replace", "rename", "remove", "unlink"):
            original = getattr(os, name)

            def mortal(*args: Any, original: Callable[..., Any] = original, **kwargs: Any) -> Any:
                dying.step()
                return original(*args, **kwargs)

            patch.setattr(os, name, mortal)


def assert_whole(folder: Path, least: int) -> int:
    """Every checkpoint can be read and has one update; the last has ``least`` or a later one."""
    for path in folder.glob("checkpoint*.pt"):
        found = torch.load(path)
        update = found["optimizer_history"][0]["num_updates"]
        for tensor in (found["model"]["w"], found["last_optimizer_state"]["moments"]):
            assert bool((tensor == update).all()), path
    last: int = torch.load(folder / "checkpoint_last.pt")["optimizer_history"][0]["num_updates"]
    assert last >= least
    return last


def test_killed_within_every_step_of_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    update, kills = 1, 0
    while True:
        dying = Dying(kills)

        def act(dying: Dying = dying, update: int = update + 1) -> None:
            dying.install(monkeypatch)
            save(tmp_path, update)

        status = in_a_child(act)
        update = max(update, assert_whole(tmp_path, update))
        assert saving.readable_instead(tmp_path) is None
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1
    assert kills > 20
    saving.remove_partial(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"checkpoint_last.pt", "checkpoint_best.pt"} <= names
    assert all(name.startswith("checkpoint") for name in names)


def test_without_the_remedy_a_kill_leaves_half_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were fairseq mended, the remedy could go."""
    save(tmp_path, 1)

    def act() -> None:
        copy = checkpoint_utils.PathManager.copy.__wrapped__
        monkeypatch.setattr(checkpoint_utils.PathManager, "copy", staticmethod(copy))
        dying = Dying(0)
        write = checkpoint_utils.torch_persistent_save
        write(state(2), str(tmp_path / "checkpoint2.pt"))
        dying.install(monkeypatch)
        checkpoint_utils.PathManager.copy(
            str(tmp_path / "checkpoint2.pt"), str(tmp_path / "checkpoint_last.pt"), overwrite=True
        )

    assert os.WTERMSIG(in_a_child(act)) == signal.SIGKILL
    with pytest.raises(RuntimeError):
        torch.load(tmp_path / "checkpoint_last.pt")
    assert saving.readable_instead(tmp_path) == tmp_path / "checkpoint2.pt"


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_a_full_disk_ends_in_a_sentence_and_keeps_what_was_there(tmp_path: Path, room: int) -> None:
    save(tmp_path, 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def act() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        with pytest.raises(UserError, match=r"checkpoint2\.pt cannot be written .*: make room"):
            save(tmp_path, 2)

    assert in_a_child(act) == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_in_a_training_from_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command would begin with the other one again."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "orig_argv", ["fairseq-train", "--reset-optimizer"])
    config = CheckpointConfig(
        save_dir=str(tmp_path), restore_file="old.pt", reset_optimizer=True, no_save=False
    )
    monkeypatch.setattr(saving.tensor_files, "write", full)
    writes = saving._torch_persistent_save
    trainer = SimpleNamespace(checkpoint_suffix="")
    for end in (
        "make room and run the same command again.",
        "make room and continue with fairseq-train --restore-file checkpoint_last.pt.",
    ):
        with pytest.raises(UserError) as error:
            saving._save_checkpoint(
                lambda *_: writes(print, {}, "x.pt"), config, trainer, None, None
            )
        assert str(error.value).endswith(end)
        (tmp_path / "checkpoint_last.pt").touch()


def test_a_full_disk_while_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(source: Any, target: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match=r"best\.pt cannot be written \(No space left on device\)"):
        save(tmp_path, 2)
    assert assert_whole(tmp_path, 1) == 1
    assert not list(tmp_path.glob(".*"))


def start(folder: Path, **given: Any) -> Any:
    """What a training does before its first update; it begins anew."""
    cfg = CheckpointConfig(save_dir=str(folder), no_save=False)
    for name, value in given.items():
        setattr(cfg, name, value)
    trainer = SimpleNamespace(
        checkpoint_suffix=given.get("checkpoint_suffix", ""),
        data_parallel_rank=0,
        data_parallel_world_size=1,
    )
    return saving._load_checkpoint(lambda *_: "begins", cfg, trainer)


@pytest.fixture
def half_written(tmp_path: Path) -> Iterator[Path]:
    """A folder where this process trains, and saves just now."""
    path = tmp_path / ".checkpoint_last.pt.abcd_123"
    start(tmp_path)
    path.write_bytes(b"half")
    yield path
    saving._held.close()


def test_another_training_does_not_write_to_the_folder(half_written: Path) -> None:
    folder = half_written.parent

    def act() -> None:
        with pytest.raises(UserError, match=f"another training is writing to {folder}: wait"):
            start(folder)
        for given in ({"no_save": True}, {"checkpoint_suffix": "-b"}):
            assert start(folder, **given) == "begins"

    assert in_a_child(act) == 0
    assert half_written.exists()
    start(folder)  # the next one of this process
    assert not half_written.exists()


def test_the_folder_is_free_when_the_training_has_ended(half_written: Path) -> None:
    """However it ends."""
    folder = half_written.parent

    def fails(*_: Any) -> None:
        start(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        saving._call_main(fails)
    assert in_a_child(lambda: start(folder)) == 0

    def killed() -> None:
        start(folder)
        die()

    assert os.WTERMSIG(in_a_child(killed)) == signal.SIGKILL
    assert start(folder) == "begins"


def test_other_ranks_leave_the_folder_to_the_first(
    half_written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act() -> None:
        monkeypatch.setattr(saving.distributed_utils, "get_global_rank", lambda: 1)
        saving._hold_folder(CheckpointConfig(save_dir=str(half_written.parent)), "")

    assert in_a_child(act) == 0


def test_a_folder_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: Any) -> Any:
        raise NoLocksError("x cannot be locked.")

    monkeypatch.setattr(saving, "locked", none)
    assert start(tmp_path) == "begins"
    assert "x cannot be locked. Until then, start no other training with this" in caplog.text


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "cut":
        content = content[: len(content) // 2]
    elif kind == "empty":
        content = bytearray()
    else:
        content[len(content) // 3] ^= 64
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["cut", "empty", "one bit"])
def test_the_newest_readable_checkpoint_is_found(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    for update in (1, 2, 3):
        save(tmp_path, update)
    save_average = state(99)
    torch.save(save_average, tmp_path / "checkpoint_average.pt")
    os.utime(tmp_path / "checkpoint2.pt")  # a copy of old files may have any times
    for name in ("checkpoint_last.pt", "checkpoint3.pt", "checkpoint_best.pt"):
        damage(tmp_path / name, kind)
    assert saving.readable_instead(tmp_path) == tmp_path / "checkpoint2.pt"
    (message,) = caplog.messages
    assert "checkpoint_last.pt" in message
    assert message.endswith("the training continues from " + str(tmp_path / "checkpoint2.pt") + ".")
    damage(tmp_path / "checkpoint2.pt", kind)
    with pytest.raises(UserError, match="no other checkpoint that can be read: remove the file"):
        saving.readable_instead(tmp_path)


@pytest.mark.parametrize("updates", [float("inf"), float("nan"), "x", None])
def test_a_checkpoint_with_an_impossible_number_of_updates_is_the_last_choice(
    tmp_path: Path, updates: object
) -> None:
    (tmp_path / "checkpoint_last.pt").write_bytes(b"damaged")
    torch.save(
        state(0) | {"optimizer_history": [{"num_updates": updates}]}, tmp_path / "checkpoint1.pt"
    )
    torch.save(state(2), tmp_path / "checkpoint2.pt")
    assert saving.readable_instead(tmp_path) == tmp_path / "checkpoint2.pt"


def test_the_same_command_goes_on_where_the_last_checkpoint_is_damaged(
    corpus: Corpus, tmp_path: Path
) -> None:
    """Bit for bit as a training that was never interrupted."""
    folder, whole = tmp_path / "a", tmp_path / "b"
    train(corpus, folder, "--max-epoch", 2, "--keep-last-epochs", 2)
    (folder / "checkpoint2.pt").rename(folder / "checkpoint_2_34.pt")
    (folder / "checkpoint_best.pt").unlink()
    damage(folder / "checkpoint_last.pt", "cut")
    (folder / ".checkpoint_last.pt.abcd_123").write_bytes(b"half")
    log = train(corpus, folder, "--max-epoch", 3, "--keep-last-epochs", 2)
    assert f"the training continues from {folder / 'checkpoint_'}" in log
    assert [path.name for path in folder.glob(".*")] == [".lock"]
    train(corpus, whole, "--max-epoch", 3)
    found, expected = (torch.load(f / "checkpoint_last.pt") for f in (folder, whole))
    assert found["cfg"]["checkpoint"]["restore_file"] == "checkpoint_last.pt"
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value)
    for index, moments in expected["last_optimizer_state"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(
                torch.as_tensor(found["last_optimizer_state"]["state"][index][name]),
                torch.as_tensor(value),
            )
    for path in folder.glob("*.pt"):
        damage(path, "empty")
    refused = train(corpus, folder, "--max-epoch", 4, expect=1)
    assert "has no other checkpoint that can be read" in refused
    assert "Traceback" not in refused
