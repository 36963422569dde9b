"""Signals as a request to stop, which the training obeys at its next step."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from resmlp_mt.signals import forget_lost_terminal, handle, restore, tell


@dataclass
class Stop:
    """The request to stop, if there was one.

    Attributes:
        number: number of the signal; 0 before a signal.
        waits: whether a signal only sets ``number``; as long as there is nothing to save, it is
            False, and a signal ends the process at once.
    """

    number: int = 0
    waits: bool = False


@contextmanager
def stops() -> Iterator[Stop]:
    """Handle the ending signals in the block; a second SIGINT ends it at once.

    Raises:
        SystemExit: with status 143, 130 or 129; at once if not ``waits``, else at the end of the
            block.
    """
    stop = Stop()

    def ask(number: int, frame: object) -> None:
        stop.number = number
        forget_lost_terminal(number)
        if not stop.waits:
            tell("stopped before the first update: there is nothing to save")
            raise SystemExit(128 + number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    earlier = handle(ask)
    try:
        yield stop
    except KeyboardInterrupt:
        print("stopped at once, without saving: use the last checkpoint", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        restore(earlier)
    if stop.number:
        raise SystemExit(128 + stop.number)
