"""Work spread over processes, results in the order of the items, memory bounded."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from resmlp_mt.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT_PER_PROCESS = 3


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    jobs: int,
    setup: Callable[..., None],
    setup_args: tuple[Any, ...],
) -> Iterator[Result]:
    """`map(function, items)` over `jobs` processes.

    Results come in the order of the items, so they do not depend on `jobs`. At most
    `IN_FLIGHT_PER_PROCESS * jobs` items are held at a time (`Executor.map` would read them all).

    Args:
        function: called in a worker; with one job, here.
        items: read as needed.
        jobs: number of processes.
        setup: called once in each process before the first item, with `setup_args`.
    """
    if jobs == 1:
        setup(*setup_args)
        yield from map(function, items)
        return
    with _processes(jobs, setup, setup_args) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= IN_FLIGHT_PER_PROCESS * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def run_in_process(function: Callable[..., Result], *args: Any) -> Result:
    """Calls `function` in a process of its own: its memory goes back, and a signal can end it."""
    with _processes(1, _nothing, ()) as pool:
        return pool.submit(function, *args).result()


@contextmanager
def _processes(
    jobs: int, setup: Callable[..., None], setup_args: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    # "spawn" on every platform: no fork of a process that has threads.
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_start_worker, initargs=(setup, setup_args)
    )
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a worker process was killed, most likely for want of memory: "
                "use a smaller --jobs and run the same command again"
            ) from error
        raise
    pool.shutdown()


def _start_worker(setup: Callable[..., None], setup_args: tuple[Any, ...]) -> None:
    # Ctrl-C reaches every process of the terminal: the parent tells of it and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    setup(*setup_args)


def _end_with_parent() -> None:
    """Ends this worker when the parent is gone, even if that was killed outright."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _nothing() -> None:
    pass
