"""The ONNX graphs of a folder as ONNX Runtime opens them, once for each process."""

import ctypes
import os
import weakref
from pathlib import Path
from typing import Any

from resmlp_mt.errors import UserError, reason, refused

# Read when the runtime is imported: it would send events to its makers, and write into the home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class Graphs:
    """The open graphs of a folder, by the names of their files.

    A forked process opens them again, because the threads of the runtime are not there.

    Args:
        folder: with the files.
        threads: of one product.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder, self._threads = folder.resolve(), threads
        self._open: dict[str, Any] = {}
        self._files: dict[str, tuple[int, ...]] = {}
        _all.add(self)

    def open(self, name: str) -> Any:
        """Open a graph, an ``InferenceSession``.

        Raises:
            OSError, or an exception of the runtime's own: if it cannot be read.
        """
        path = self._folder / name
        self._files[name] = _identity(path)
        self._open[name] = _session(path, self._threads)
        return self._open[name]

    def __getitem__(self, name: str) -> Any:
        """A graph that was opened before, maybe by the process that this one was forked from."""
        found = self._open.get(name)
        if found is not None:
            return found
        path = self._folder / name
        with refused(
            lambda error: (
                f"{path} cannot be opened in a forked process ({said(error)}): load the "
                "model there."
            ),
            Exception,  # the runtime's own types have no common base
        ):
            if _identity(path) != self._files[name]:
                raise UserError(f"{path} has changed since it was loaded: load the model again.")
            return self.open(name)


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # where the program imported it before this module
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The threads of a graph that has run would wait in a loop, and take the processor from the
    # next graph: one sentence in int8 took twice as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # a plan for every combination of sizes would be kept, and saves no time
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(
        _InBytes(path),
        options,
        providers=["CPUExecutionProvider"],
        enable_fallback=False,  # prints about a broken graph, and reads it once more
    )


class _InBytes:
    """A path for the runtime, which takes text for UTF-8. It would keep the bytes of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self._path)


def _identity(path: Path) -> tuple[int, ...]:
    """What differs if a file was replaced or written to."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def said(error: Exception) -> str:
    """What an error of the runtime or the system says, in one line."""
    return reason(error) if isinstance(error, OSError) else " ".join(str(error).split())


_all: weakref.WeakSet[Graphs] = weakref.WeakSet()


def _leave() -> None:
    """Let go of all graphs in a forked process.

    They are never destroyed there, which would be to wait for ever for threads that are not there.
    """
    for graphs in _all:
        for graph in graphs._open.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(graph))
        graphs._open.clear()


os.register_at_fork(after_in_child=_leave)
