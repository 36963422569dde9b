"""Spreads work over processes, with results in the order of the items and bounded memory."""

import multiprocessing
import multiprocessing.connection
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from resmlp_mt import signals
from resmlp_mt.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT_PER_PROCESS = 3


class Workers:
    """Processes for one step after the other; a context manager, which ends them.

    Args:
        jobs: number of processes; with one, everything is done in this process.
        folder: where temporary files are put; by default the system's folder for them.
    """

    def __init__(self, jobs: int, folder: Path | None = None) -> None:
        self.jobs = jobs
        self.folder = folder
        self._stack = ExitStack()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        self._pool = None
        return self._stack.__exit__(*error)

    def map(
        self,
        make: Callable[..., Callable[[Item], Result]],
        arguments: tuple[Any, ...],
        items: Iterable[Item],
    ) -> Iterator[Result]:
        """`map(make(*arguments), items)`, with the results in the order of the items.

        At most `IN_FLIGHT_PER_PROCESS * jobs` items are held at a time (`Executor.map` would read
        them all).

        Args:
            make: makes the function, once in each process; with one job, in this process.
            items: read as needed.
        """
        if self.jobs == 1:
            yield from map(make(*arguments), items)
            return
        if self._pool is None:
            self._pool = self._stack.enter_context(_processes(self.jobs))
        waiting: deque[Future[Result]] = deque()
        # Sent once, in a file, and not with every item: held-out sentences are megabytes.
        with tempfile.NamedTemporaryFile(prefix=".make.", dir=self.folder) as file:
            file.write(pickle.dumps((make, arguments)))
            file.flush()
            for item in items:
                waiting.append(self._pool.submit(_call, file.name, item))
                if len(waiting) >= IN_FLIGHT_PER_PROCESS * self.jobs:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())


_ready: tuple[str, Callable[[Any], Any]] = ("", lambda item: None)


def _call(path: str, item: Any) -> Any:
    """In a worker: calls the function that the file `path` says how to make."""
    global _ready
    if _ready[0] != path:
        # written by the process that started this one, in a folder of its own
        make, arguments = pickle.loads(Path(path).read_bytes())  # nosec B301
        _ready = path, make(*arguments)
    return _ready[1](item)


def _result(future: Future[Result], option: str = "--jobs") -> Result:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, probably because memory ran out: "
            f"use a smaller {option} and run the same command again"
        ) from error


def run_in_process(option: str, function: Callable[..., Result], *args: Any) -> Result:
    """Calls `function` in a process of its own: its memory is freed, and a signal can end it.

    Args:
        option: what its memory depends on, for the message if it is killed.
        function: what to call.
        args: its arguments.
    """
    with _processes(1) as pool:
        return _result(pool.submit(function, *args), option)


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    # "spawn" on every platform, because a process with threads must not be forked.
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=signals.follow_parent)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.kill()  # it ignores milder signals
        raise
    pool.shutdown()
