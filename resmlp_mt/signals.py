"""The signals that end a program, and what it prints after them."""

import os
import select
import signal
import stat
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a service manager or ``kill``, and a terminal that closes."""


Handlers = dict[signal.Signals, Any]
"""What ``signal.signal`` takes, by signal."""


def ending_signals() -> list[signal.Signals]:
    """Those of :data:`ENDING` that this process heeds.

    ``nohup`` starts it with SIGHUP ignored, and ``&`` in a script with SIGINT ignored.
    """
    return [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]


def handle(
    handler: Callable[[int, Any], Any], numbers: Collection[signal.Signals] = ENDING
) -> Handlers:
    """Have a function called for ending signals; does nothing outside the main thread.

    Args:
        handler: takes the number of the signal and the frame.
        numbers: those of :data:`ENDING` to handle, if this process heeds them.

    Returns:
        The earlier handlers, for :func:`restore`.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}  # Python refuses
    heeded = [number for number in ending_signals() if number in numbers]
    return {number: signal.signal(number, handler) for number in heeded}


def restore(handlers: Handlers) -> None:
    """Set handlers of signals again."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Let the ending signals wait, also in processes that are started here: see :func:`release`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release() -> None:
    """In a process that was started within :func:`held`: receive the ending signals."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def leave_signals_to_parent() -> None:
    """In a worker process: ignore signals, which terminals send to all; its parent ends it."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    release()  # what came meanwhile is ignored, too


def follow_parent() -> None:
    """In a worker process: leave signals to the parent, and end with it, even if it is killed."""
    leave_signals_to_parent()
    end_with_parent()


def end_with_parent() -> None:
    """In a worker process: end when the parent does, even if it is killed or this process hangs."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    import multiprocessing  # only workers need it

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def tell(message: str) -> None:
    """Print to standard error in one piece, also from the handler of a signal.

    The signal may have come while ``sys.stderr`` was being written, which then refuses more.
    """
    with suppress(OSError):  # closed
        os.write(2, f"{message}\n".encode(errors="backslashreplace"))


def reader_is_gone(descriptor: int) -> bool:
    """Whether an output is a pipe or a socket that nobody reads any more."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def discard(descriptor: int) -> None:
    """Print into the void from now on."""
    void = os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, descriptor)
    os.close(void)


def forget_lost_terminal(number: int) -> None:
    """After a signal, print into the void if the terminal is gone or, for SIGHUP, about to go.

    A failed write would end the program in the middle of its work, and with another status.
    """
    for descriptor in (1, 2):
        with suppress(OSError):  # closed
            # a terminal that is gone is still a device, but isatty denies it
            is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
            if is_device and (number == signal.SIGHUP or not os.isatty(descriptor)):
                discard(descriptor)
