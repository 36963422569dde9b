"""Files that appear complete or not at all."""

import glob
import hashlib
import json
import os
import secrets
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from resmlp_mt.errors import UserError, reason, refused

LFS = b"version https://git-lfs.github.com/"
POINTER = "a pointer of Git LFS: get the file itself with git lfs pull"

#: what macOS, Windows and network drives put into folders; files of tools have a leading dot
FOREIGN = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
    "__pycache__", "#snapshot", "@recycle", "@recently-snapshot", "network trash folder",
    "temporary items", "thumbs.db", "desktop.ini", "~snapshot", "lost.dir",
}  # fmt: skip


def is_hidden(path: str) -> bool:
    """Whether a part of a relative path is hidden or belongs to an operating system."""
    parts = (part for part in path.split("/") if part not in (".", ".."))
    return is_foreign(path) or any(part.startswith(".") for part in parts)


def is_foreign(path: str) -> bool:
    """Whether a part of a path belongs to an operating system."""
    return any(part.lower() in FOREIGN for part in path.split("/"))


def expanded(text: str) -> Path:
    """The type of an option for a path; see :func:`path_text`.

    Raises:
        UserError: if it is empty, which Python takes for the current folder.
    """
    if not text:
        raise UserError("a path is empty: is a variable of the shell not set?")
    return Path(path_text(text))


expanded.__name__ = "path"  # argparse names it in its message


def path_text(text: str) -> str:
    """A path as a user means it: shells leave the ``~`` of ``--output=~/FILE`` as it is.

    A file whose name has the same characters in another form of Unicode is meant, too: names that
    come from macOS have accents of their own (NFD), and look the same.
    """
    given = os.path.expanduser(text)
    if text.isascii() or os.path.lexists(given):
        return given
    path = Path(given)
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        alike = [part]
        if not os.path.lexists(found / part):
            with suppress(OSError):
                alike = [name for name in os.listdir(found) if _nfc(name) == _nfc(part)]
        found /= alike[0] if len(alike) == 1 else part
    return str(found)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def not_a_checkpoint(path: Path) -> UserError:
    """The error for a checkpoint that is missing or is not a file, such as a folder of them."""
    best = path / "checkpoint_best.pt"
    such = f", such as {best}" if best.is_file() else ""
    wrong = "is not a file" if path.exists() else "does not exist"
    return UserError(f"{path} {wrong}: give one checkpoint of fairseq-train{such}.")


def check_is_whole(path: Path) -> None:
    """Refuse the small text that Git LFS leaves in place of a large file.

    Anything but a regular file is left alone: a pipe can be read only once.

    Raises:
        OSError: if the file cannot be read.
        UserError: naming the command that gets the file itself.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise UserError(f"{path} is {POINTER}.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new, empty file to write to; at the end it is renamed to ``path``.

    The new file lies beside ``path``, under a name that nobody can guess, so that no link can be
    planted there. It is synchronized with the disk before it is renamed: after a crash or a full
    disk, ``path`` has its old content or all of the new one. If the block raises, the new file is
    removed. If ``path`` is a link, the file that it points to is replaced. Devices and pipes cannot
    be replaced, and are yielded themselves.

    Raises:
        OSError: if the file cannot be written.
    """
    if path.exists() and not path.is_file():
        if path.is_dir():
            raise IsADirectoryError(21, os.strerror(21), str(path))
        yield path  # not what it points to: /dev/stdout may lead to pipe:[123], not a path
        return
    target = Path(os.path.realpath(path))
    partial = target.parent / (partial_prefix(target) + secrets.token_hex(4))
    partial.open("xb").close()  # with the permissions of any new file
    try:
        if target.exists():
            partial.chmod(target.stat().st_mode & 0o777)
        yield partial
        synchronize(partial)
        os.replace(partial, target)
        synchronize(target.parent)
    finally:
        with suppress(OSError):
            partial.unlink()


def partial_prefix(path: Path) -> str:
    """What the name of an unfinished file begins with, which has at most 255 bytes in all."""
    name = os.fsencode(path.name)
    is_long = len(name) > 240
    return f".{hashlib.sha256(name).hexdigest()[:32] if is_long else path.name}."


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes have left of :func:`replacing`; none may write ``path`` now."""
    for left in path.parent.glob(glob.escape(partial_prefix(path)) + "?" * 8):
        left.unlink(missing_ok=True)


@contextmanager
def output_file(path: Path, option: str = "") -> Iterator[Path]:
    """:func:`replacing`, but failures are a :class:`UserError`.

    Args:
        option: that named the file, for the message.

    Raises:
        UserError: if it cannot be written.
    """
    with writing(path, option), replacing(path) as partial:
        yield partial


def write_text(path: Path, text: str, option: str = "") -> None:
    """Write a text in UTF-8, all of it or nothing; see :func:`output_file`."""
    with output_file(path, option) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, option: str = "") -> None:
    """Write JSON that any program can read, in ASCII and without NaN; see :func:`output_file`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", option)


def make_folder(path: Path, option: str = "") -> None:
    """Make a folder, and those above it, unless it exists.

    Raises:
        UserError: if it cannot be made.
    """
    with writing(path, option):
        path.mkdir(parents=True, exist_ok=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_outputs(*outputs: tuple[str, Path | None]) -> None:
    """Refuse output files that cannot be written, or are one file, before any work is done.

    Args:
        outputs: the option and the file of each result; None if there is to be no file.

    Raises:
        UserError: naming the option and the file.
    """
    targets: set[Path] = set()
    for option, path in outputs:
        if path is None:
            continue
        if str(path) == "-":  # and ./-
            raise UserError(
                f"{option} - is not standard output: name a file (one called - by its full path)."
            )
        with writing(path, option):
            target = Path(os.path.realpath(path))
            if target in targets and (path.is_file() or not path.exists()):
                raise UserError(
                    f"{option} {path} is given for two results: give each a file of its own."
                )
            targets.add(target)
            if path.is_dir():
                raise IsADirectoryError(21, os.strerror(21))
            if not path.exists() or path.is_file():
                with tempfile.NamedTemporaryFile(prefix=partial_prefix(target), dir=target.parent):
                    pass


def check_standard_output(path: Path | None, option: str) -> None:
    """Refuse results that would be lost: no file is named for them, and standard output is closed.

    Raises:
        UserError: naming the option.
    """
    if path is None and sys.stdout is None:
        raise UserError(f"standard output is closed: give {option} FILE.")


class LockedError(UserError):
    """Another process holds the lock of a file."""


class NoLocksError(UserError):
    """A file cannot be locked, although no other process holds its lock."""


_held: set[IO[Any]] = set()


def _leave_locks() -> None:
    """Let go of the locks in a forked process, which may outlive the one that holds them."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_locks)


@contextmanager
def locked(path: Path, taken: str, option: str = "") -> Iterator[None]:
    """Hold the lock of a file, which is made.

    Args:
        taken: what to say if another process holds it.
        option: the option that named its folder, for the message.

    Raises:
        LockedError: if another process holds it.
        NoLocksError: if the file system has no locks, or the file is there and cannot be read.
        UserError: if the file cannot be made.
    """
    import portalocker

    flags = portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING
    lock = portalocker.Lock(path, flags=flags, fail_when_locked=True)
    make_folder(path.parent, option)
    try:
        try:
            file = lock.acquire()
        except PermissionError:
            if not os.path.exists(path):
                raise
            lock.mode = "r"  # the file is another user's: reading it is enough
            file = lock.acquire()
    except portalocker.AlreadyLocked as error:
        raise LockedError(taken) from error
    except portalocker.LockException as error:
        raise NoLocksError(
            f"{path} cannot be locked ({reason(error)}): its file system must have locks."
        ) from error
    except OSError as error:
        if isinstance(error, PermissionError) and os.path.exists(path):
            raise NoLocksError(
                f"{path} cannot be locked ({reason(error)}): its owner must let you read it."
            ) from error
        with writing(path.parent, option):
            raise
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
        lock.release()


def writing(path: Path, option: str = "") -> AbstractContextManager[None]:
    """In the block, failures to write are a :class:`UserError` that names the file."""
    named = f"{option} {path}" if option else str(path)
    return refused(
        lambda error: f"{named} cannot be written ({reason(error)}): choose another place.", OSError
    )


def synchronize(path: Path) -> None:
    """Write a file's content, or a folder's entries, from the system's cache to the disk.

    Raises:
        OSError: if it cannot.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
