"""Mixing matrices for clients: a few at a time, and remembered, because they never change."""

from collections.abc import Sequence

from resmlp_mt.serving.scheduler import RefusedError
from resmlp_mt.serving.workers import Languages, Worker

MOST_AT_ONCE = 2  # so that translations do not wait for long
MOST_REMEMBERED, LARGEST_REMEMBERED = 64, 2**20  # answers, and bytes of one


class Matrices:
    """The answers of workers about their matrices."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._in_work = 0
        self._remembered: dict[tuple[Languages, int, int], bytes] = {}

    async def answer(self, languages: Languages, layer: int, length: int) -> bytes:
        """The answer of a worker, or an earlier one.

        Raises:
            RefusedError: if too many are being made, or no worker is left.
            LookupError, WorkerDiedError: see :meth:`Worker.mixing`.
        """
        asked = languages, layer, length
        if asked in self._remembered:
            return self._remembered[asked]
        worker = next((worker for worker in self._workers if worker.failure is None), None)
        if worker is None or self._in_work >= MOST_AT_ONCE:
            raise RefusedError("the server is busy: try again later")
        self._in_work += 1
        try:
            found = await worker.mixing(*asked)
        finally:
            self._in_work -= 1
        if len(found) <= LARGEST_REMEMBERED:
            if len(self._remembered) >= MOST_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[asked] = found
        return found
