"""Divides sentences into batches, and runs several batches at once in threads.

Threads share the weights and start quickly. PyTorch and ONNX Runtime let other threads run while
they compute, which is four fifths of the time at dim 128 and more in larger models. With a small
model and more than five cores, several processes are faster.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeVar

from resmlp_mt.engine.inputs import check_counts
from resmlp_mt.errors import UserError, is_of_memory, reason
from resmlp_mt.machine import NO_THREAD, current_threads, set_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


def batches(
    sentences: dict[int, list[int]], batch_size: int, max_tokens: int | None
) -> Iterator[list[int]]:
    """Numbers of sentences, longest first.

    Args:
        sentences: their tokens, by number.
        max_tokens: largest number in a batch, padding included.
    """
    batch: list[int] = []
    longest = 0
    for number in sorted(sentences, key=lambda n: len(sentences[n]), reverse=True):
        length = len(sentences[number])
        tokens = (len(batch) + 1) * max(longest, length)
        too_many = max_tokens is not None and tokens > max_tokens
        if batch and (too_many or len(batch) == batch_size):
            yield batch
            batch, longest = [], 0
        batch.append(number)
        longest = max(longest, length)
    if batch:
        yield batch


def explain(error: Exception, lines: Sequence[str], remedy: str) -> None:
    """Add to an error the lines that were being translated.

    Args:
        remedy: what to do if memory ran out.

    Raises:
        UserError: in place of the error, if memory ran out.
    """
    named = f"{len(lines)} lines at once, the longest of which begins with '{lines[0][:40]}'"
    if is_of_memory(error):
        raise UserError(f"there is not enough memory to translate {named}: {remedy}.") from error
    error.add_note(f"This happened while translating {named}.")


@functools.cache
def compute_alone_in_forks() -> None:
    """Let a process that is forked from this one compute with one thread.

    Threads do not exist in a forked process, and PyTorch waits for its own for ever.
    """

    os.register_at_fork(after_in_child=functools.partial(set_threads, 1))


_thread = threading.local()
"""``is_worker`` is set in the threads of all workers."""


def _start_thread(threads: int, has_started: threading.Event) -> None:
    _thread.is_worker = True
    set_threads(threads)
    has_started.set()


class Workers:
    """Threads that call a function for many items; a single worker is the calling thread.

    A worker whose function calls this again does those items itself: threads that wait for each
    other would wait for ever.

    They start again in a process that is forked from this one.

    Args:
        count: number of items that are processed at once.
        threads: threads of one product of PyTorch in each worker, if there are several.

    Raises:
        UserError: if one of them is below 1.
    """

    def __init__(self, count: int, threads: int = 1) -> None:
        check_counts(workers=count, threads=threads)
        compute_alone_in_forks()
        self._count, self._threads_each = count, threads
        self._start()

    def _start(self) -> None:
        # nothing that a thread holds leads to its pool, which ends its threads when it is let go
        self._has_started = has_started = threading.Event()
        self._process = os.getpid()
        self._threads = None
        if self._count > 1:
            self._threads = ThreadPoolExecutor(
                self._count,
                initializer=_start_thread,
                initargs=(self._threads_each, has_started),
            )

    def results(
        self, function: Callable[[Item, Callable[[], None]], Result], items: Sequence[Item]
    ) -> list[Result]:
        """The results of a function for each item, in their order.

        Args:
            function: called with an item and a check, which it has to call now and then. The check
                raises ``CancelledError`` if the results are no longer needed, because another item
                failed or Ctrl-C was pressed.

        Raises:
            UserError: if the system starts no more threads.
        """
        if self._process != os.getpid():
            self._start()
        threads = self._threads
        if threads is None or getattr(_thread, "is_worker", False):
            return [function(item, lambda: None) for item in items]
        is_stopped = threading.Event()
        before = current_threads()

        def check() -> None:
            if is_stopped.is_set():
                raise CancelledError

        futures: list[Future[Result]] = []
        try:
            for item in items:
                try:
                    futures.append(threads.submit(function, item, check))
                except RuntimeError as error:
                    if NO_THREAD not in str(error):
                        raise
                    raise UserError(
                        f"the system starts no more threads ({reason(error)}): lower --workers."
                    ) from error
            return [future.result() for future in futures]
        except (KeyboardInterrupt, SystemExit):
            # It may have come as a thread was started, before the pool knew of it: at its end the
            # program would wait for that thread for ever.
            threads.shutdown(wait=False)
            self._start()
            raise
        finally:
            is_stopped.set()
            for future in futures:
                future.cancel()
            if self._has_started.is_set() and before is not None:
                # a worker has set the number for threads that have not computed yet, too
                self._has_started.clear()
                set_threads(before)
