"""Servers for the tests: in this process with workers that are made up, or in one of their own."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from resmlp_mt.serve import bind
from resmlp_mt.serving.app import create_app
from resmlp_mt.serving.connections import protocol
from resmlp_mt.serving.limits import Limits
from resmlp_mt.serving.workers import Answer, Languages, Translated, Work

EN_DE, FR_DE = Languages("en", "de"), Languages("fr", "de")
LONGEST = 20  # words


def translated(line: str) -> str:
    """What :class:`Reversing` makes of a sentence."""
    return " ".join(reversed(line.split())).swapcase()


class Reversing:
    """A worker that turns words round; the n-th of its five translations has n exclamation marks.

    Attributes:
        batches: all that it was given.
        gate: cleared, it holds every batch back.
        failure: as of a real worker.
    """

    failure: str | None = None

    def __init__(self) -> None:
        self.batches: list[tuple[Languages, list[str]]] = []
        self.gate = threading.Event()
        self.gate.set()

    async def ready(self) -> None:
        """It always is."""

    async def translate(self, work: Work, lines: list[str]) -> list[Answer]:
        self.batches.append((work.languages, lines))
        while not self.gate.is_set():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        if any("poison" in line for line in lines):
            raise RuntimeError("poison")
        return [self.answer(line, work.explained) for line in lines]

    def answer(self, line: str, explained: bool) -> Answer:
        """The n-th word of the source becomes the n-th last one, and attends to it alone."""
        pieces = ["\u2581" + word for word in line.split()]
        tokens = len(pieces)
        turned = [[float(s + t + 1 == tokens) for s in range(tokens)] for t in range(tokens)]
        found = []
        for n in range(5):
            text = translated(line) + "!" * n
            more = (["\u2581" + word for word in text.split()], turned) if explained else ([], [])
            found.append(Translated(text, -0.1 - n, *more))
        if tokens > LONGEST or "silence" in line:
            found = []
        return Answer(tokens, LONGEST, found, pieces if explained else [])

    async def mixing(self, languages: Languages, layer: int, length: int) -> bytes:
        """Each position from the next one, and a little from the one before."""
        if layer > 1 or length > LONGEST:
            raise LookupError(f"the model has 2 layers and {LONGEST} positions")
        weights = {1: 0.5 + layer, -1: -0.25}
        rows = [[weights.get(j - i, 0.0) for j in range(length)] for i in range(length)]
        return json.dumps({"layers": 2, "matrix": rows}).encode()


@contextmanager
def served(
    workers: Sequence[Reversing],
    limits: Limits | None = None,
    languages: Sequence[Languages] = (EN_DE,),
) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    limits = limits or Limits()
    app = create_app(workers, languages, limits)
    config = uvicorn.Config(app, http=protocol(limits.max_wait), ws="none", log_level="error")
    server = uvicorn.Server(config)
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait_for(condition: Callable[[], object]) -> None:
    """Return as soon as a condition holds.

    Raises:
        TimeoutError: if it does not for five minutes, which no machine is too slow for.
    """
    end = time.monotonic() + 300
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.002)
