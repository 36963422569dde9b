"""Files appear complete or not at all."""

import errno
import os
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import portalocker
import pytest

from resmlp_mt.errors import UserError
from resmlp_mt.files import (
    LockedError,
    NoLocksError,
    check_outputs,
    expanded,
    locked,
    output_file,
    remove_unfinished,
    replacing,
)


def test_the_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as partial:
        partial.write_text("new")
        assert not path.exists()
        assert partial.parent == path.parent
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def stop_half_way() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        stop_half_way()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_link_keeps_pointing(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as partial:
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_permissions_are_those_of_the_old_file_or_the_usual_ones(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.touch(mode=0o600)
    old.chmod(0o640)
    usual = tmp_path / "usual"
    usual.touch()
    for path, like in ((old, 0o640), (tmp_path / "new", stat.S_IMODE(usual.stat().st_mode))):
        with replacing(path):
            pass
        assert stat.S_IMODE(path.stat().st_mode) == like


@pytest.mark.parametrize("name", ["a" * 255, "\u00e4" * 127])
def test_names_may_have_all_the_bytes_that_the_system_allows(tmp_path: Path, name: str) -> None:
    check_outputs(("--out", tmp_path / name))
    with replacing(tmp_path / name) as path:
        path.write_text("new")
    assert os.listdir(tmp_path) == [name]
    with suppress(FileNotFoundError), replacing(tmp_path / name):
        remove_unfinished(tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    with replacing(tmp_path / f"{name[:-1]}b") as path:  # the other file's is not touched
        remove_unfinished(tmp_path / name)
        path.write_text("also new")


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_text()))
    reader.start()
    with replacing(tmp_path / "pipe") as path:
        path.write_text("all")
    reader.join()
    assert received == ["all"]


def test_a_pipe_without_a_name_is_written_to() -> None:
    """As of ``--output /dev/stdout | ...`` and ``--output >(gzip > x.gz)``."""
    reading, writing = os.pipe()
    try:
        path = Path(f"/dev/fd/{writing}")
        check_outputs(("--output", path))
        with output_file(path, "--output") as partial:
            partial.write_text("all")
        assert os.read(reading, 10) == b"all"
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("name", ["folder", "missing/file", "file/below"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=name), output_file(tmp_path / name, "--out"):
        pass
    with pytest.raises(UserError, match=f"--out .*{name}"):
        check_outputs(("--json", None), ("--out", tmp_path / name))


def test_checking_leaves_everything_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    paths = [tmp_path / "a", tmp_path / "b", Path("/dev/null"), Path("/dev/null")]
    check_outputs(*(("--out", path) for path in paths))
    with pytest.raises(
        UserError, match=r"^--json - is not standard output: name a file .*full path"
    ):
        check_outputs(("--out", None), ("--json", Path("./-")))
    assert os.listdir(tmp_path) == ["a"]
    for name in "ab":  # one result would be lost
        with pytest.raises(
            UserError, match=rf"^--json .*{name} is given for two results: give each a"
        ):
            check_outputs(
                ("--csv", tmp_path / name),
                ("--json", tmp_path / ".." / tmp_path.name / name),
            )
    assert (tmp_path / "a").read_text() == "old"


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    """Although a process that it started by fork lives on, as the workers of a killed one do."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom resmlp_mt.files import locked\n"
        "started, start = os.pipe()\n"
        "with locked(Path(sys.argv[1]), 'taken'):\n"
        "    if os.fork() == 0:\n"
        "        os.write(start, b'x')\n"
        "        sys.stdin.read()\n"
        "        os._exit(0)\n"
        "    os.read(started, 1)\n"
        "    os._exit(9)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait() == 9
        with locked(tmp_path / "lock", "taken"):
            pass
        assert process.stdin
        process.stdin.close()


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not another run, for which one would wait in vain."""
    path = tmp_path / "lock"

    def acquire(_: object) -> None:
        raise portalocker.LockException(OSError(95, "Operation not supported"), "not supported")

    with locked(path, "taken"), pytest.raises(UserError, match="taken"), locked(path, "taken"):
        pass
    monkeypatch.setattr(portalocker.Lock, "acquire", acquire)
    with (
        pytest.raises(
            UserError, match=r"lock cannot be locked \(.*not supported\): its file system"
        ),
        locked(path, "taken"),
    ):
        pass


@pytest.mark.parametrize("refused", ["a", "ar"])
def test_the_lock_of_another_user_is_held_if_it_can_be_read(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    path.touch()

    def opened(name: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if Path(name) == path and mode in refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
        return open(name, mode, *args, **kwargs)

    monkeypatch.setattr(portalocker.utils, "open", opened, raising=False)
    message = "taken" if refused == "a" else r"cannot be locked \(Permission denied\): its owner"
    with pytest.raises(LockedError if refused == "a" else NoLocksError, match=message):  # noqa: SIM117
        with locked(path, "taken"), locked(path, "taken"):
            pass


def test_a_name_in_another_form_of_unicode_is_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files from macOS have decomposed names, which look the same."""
    composed, decomposed = "\u00e9t\u00e9", "e\u0301te\u0301"
    (tmp_path / decomposed).mkdir()
    (tmp_path / decomposed / composed).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / decomposed / composed
    for given in (f"{tmp_path}/{composed}/{decomposed}", f"~/{composed}/{composed}", str(path)):
        assert expanded(given) == path
    assert expanded(f"{composed}/{decomposed}") == path.relative_to(tmp_path)
    assert expanded(f"{composed}/n\u00e9w") == Path(decomposed, "n\u00e9w")
    assert expanded("n\u00e9w/x") == Path("n\u00e9w/x")
    (tmp_path / composed).mkdir()
    assert expanded(f"{composed}/x") == Path(composed, "x")
