"""Servers for the tests: in this process with workers that are made up, or in one of their own."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from resmlp_mt.serve import bind
from resmlp_mt.serving.app import Limits, create_app
from resmlp_mt.serving.workers import Answer, Languages, Translated

EN_DE, FR_DE = Languages("en", "de"), Languages("fr", "de")
LONGEST = 20  # words


def translated(line: str) -> str:
    """What :class:`Reversing` makes of a sentence."""
    return " ".join(reversed(line.split())).swapcase()


class Reversing:
    """A worker that turns words round; the n-th best translation has n exclamation marks.

    Attributes:
        batches: all that it was given.
        gate: cleared, it holds every batch back.
    """

    def __init__(self, hypotheses: int = 5) -> None:
        self.batches: list[tuple[Languages, list[str]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.hypotheses = hypotheses

    async def translate(self, languages: Languages, lines: list[str]) -> list[Answer]:
        self.batches.append((languages, lines))
        while not self.gate.is_set():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        if any("poison" in line for line in lines):
            raise RuntimeError("poison")
        return [self.answer(line) for line in lines]

    def answer(self, line: str) -> Answer:
        tokens = len(line.split())
        found = [Translated(translated(line) + "!" * n, -0.1 - n) for n in range(self.hypotheses)]
        return Answer(tokens, LONGEST, [] if tokens > LONGEST or "silence" in line else found)


@contextmanager
def served(
    workers: Sequence[Reversing],
    limits: Limits | None = None,
    languages: Sequence[Languages] = (EN_DE,),
) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    app = create_app(workers, languages, limits or Limits())
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait_for(condition: "object", seconds: float = 60.0) -> None:
    """Return as soon as a condition holds.

    Raises:
        TimeoutError: if it does not for a minute, which no machine is too slow for.
    """
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.002)
