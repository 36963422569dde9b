"""Spreads work over processes, with results in the order of the items and bounded memory."""

import functools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from resmlp_mt import signals
from resmlp_mt.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT_PER_PROCESS = 3


@contextmanager
def mapped(
    jobs: int,
    make: Callable[..., Callable[[Item], Result]],
    arguments: tuple[Any, ...],
    items: Iterable[Item],
) -> Iterator[Iterator[Result]]:
    """`map(make(*arguments), items)` by processes, which end with the block.

    At most `IN_FLIGHT_PER_PROCESS * jobs` items are held at a time (`Executor.map` would read them
    all).

    Args:
        jobs: number of processes; with one, everything is done in this process.
        make: makes the function, once in each process.
        arguments: of `make`; sent once to each process, because held-out sentences are megabytes.
        items: read as needed.
    """
    if jobs == 1:
        yield map(make(*arguments), items)
        return
    with _processes(jobs, _prepare, make, arguments) as pool:
        yield _in_order(pool, IN_FLIGHT_PER_PROCESS * jobs, items)


def _in_order(pool: ProcessPoolExecutor, most: int, items: Iterable[Any]) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(_submit(pool, _call, item))
        if len(waiting) >= most:
            yield _result(waiting.popleft())
    while waiting:
        yield _result(waiting.popleft())


def _submit(
    pool: ProcessPoolExecutor, function: Callable[..., Result], *args: Any
) -> Future[Result]:
    """Submits a call. A process that it starts is told of no Ctrl-C before it ignores it.

    Nor may the main process stop before it has given all that a process needs to start. No other
    thread may take signals, so `pipeline` has tqdm start none.
    """
    with signals.held():
        return pool.submit(function, *args)


_made: Callable[[], Callable[[Any], Any]]
"""In a worker: the function that is mapped, made at the first call."""


def _prepare(make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    global _made
    _made = functools.cache(functools.partial(make, *arguments))


def _call(item: Any) -> Any:
    return _made()(item)


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
        return _result(_submit(pool, function, *args), option)


@contextmanager
def _processes(jobs: int, *prepare: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes that begin by calling a function with arguments, `prepare`, if there is one."""
    # "spawn" on every platform, because a process with threads must not be forked.
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    resource_tracker.ensure_running()  # starting it later would let signals through
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=prepare)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.kill()  # it ignores milder signals
        raise
    pool.shutdown()


def _begin(function: Callable[..., None] | None = None, *args: Any) -> None:
    signals.follow_parent()
    if function is not None:
        function(*args)
