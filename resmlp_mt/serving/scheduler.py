"""Batches the waiting sentences of many clients.

Sentences wait in a bounded queue. An idle worker takes the sentence that has waited longest and the
next ones of the same kind, up to a batch. Nothing waits for a batch to fill: an idle server answers
at once, and batches grow with the load.
"""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from resmlp_mt.serving.metrics import Metrics
from resmlp_mt.serving.workers import (
    Answer,
    Languages,
    Work,
    Worker,
    WorkerDiedError,
    WorkerGoneError,
)

MOST_AT_ONCE = 2  # matrices, so that translations do not wait for long
MOST_REMEMBERED, LARGEST_REMEMBERED = 64, 2**20  # answers, and bytes of one


class RefusedError(Exception):
    """A request that cannot be answered now; the message is a sentence for the client."""


class FailedError(Exception):
    """A request that cannot be answered at all; the message is a sentence for the client."""


@dataclass(eq=False)
class _Job:
    line: str
    number: int  # in the order of arrival
    has_failed: bool = False
    answer: "asyncio.Future[Answer]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Scheduler:
    """The queue between requests and workers.

    Args:
        workers: each translates one batch at a time.
        max_batch_characters: largest number of characters in a batch; a longer sentence is a batch
            of its own.
        max_batch_size, queue_size: largest numbers of sentences in a batch and in the queue.
        max_wait: seconds until an answer; a request that takes longer is refused.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        metrics: Metrics,
        max_batch_characters: int,
        max_batch_size: int,
        queue_size: int,
        max_wait: float,
    ) -> None:
        self._workers = workers
        self._metrics = metrics
        self._max_batch_characters = max_batch_characters
        self._max_batch_size = max_batch_size
        self.queue_size = queue_size
        self._max_wait = max_wait
        self._waiting: dict[Work, dict[_Job, None]] = {}  # in the order of arrival
        self._again: dict[_Job, Work] = {}  # these have failed once
        self._numbers = itertools.count()
        self._arrived = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the workers' loops; call it within an event loop."""
        self._tasks = [asyncio.create_task(self._serve(worker)) for worker in self._workers]

    async def stop(self) -> None:
        """End the workers' loops; call it when all requests are answered."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def waiting(self) -> int:
        """The number of sentences that wait for a worker."""
        return sum(len(jobs) for jobs in self._waiting.values()) + len(self._again)

    def check_workers(self) -> None:
        """Check that there is a worker that can translate, now or soon.

        Raises:
            RefusedError: if none could load its models again after its process died.
        """
        if all(worker.failure for worker in self._workers):
            raise RefusedError(
                "no worker can translate: its models cannot be loaded, as the server's log says; "
                "try again later"
            )

    async def translate(self, work: Work, lines: Sequence[str]) -> list[Answer]:
        """Translate sentences; if this call is cancelled, they leave the queue.

        Raises:
            RefusedError: if the queue is full, no worker is left, or the answer takes too long.
            FailedError: if a sentence cannot be translated.
        """
        if not lines:
            return []
        self.check_workers()
        if self.waiting() + len(lines) > self.queue_size:
            raise RefusedError("the server is busy: its queue is full, try again later")
        jobs = [_Job(line, next(self._numbers)) for line in lines]
        queue = self._waiting.setdefault(work, {})
        queue.update(dict.fromkeys(jobs))
        try:
            async with asyncio.timeout(self._max_wait):
                async with self._arrived:
                    self._arrived.notify(len(jobs))
                return await asyncio.gather(*(job.answer for job in jobs))
        except TimeoutError as error:
            raise RefusedError(
                f"the server is busy: no answer within {self._max_wait:g} seconds, try again later"
            ) from error
        finally:
            for job in jobs:
                queue.pop(job, None)
                self._again.pop(job, None)
                job.answer.cancel()

    async def _serve(self, worker: Worker) -> None:
        while True:
            await worker.ready()
            async with self._arrived:
                await self._arrived.wait_for(self.waiting)
                work, jobs = self._take()
            await self._answer(worker, work, jobs)

    def _take(self) -> tuple[Work, list[_Job]]:
        """Take a batch from the queue: the oldest sentence, and the next ones of its kind.

        A sentence of a batch that has failed comes first, and alone.
        """
        if self._again:
            job = next(iter(self._again))
            return self._again.pop(job), [job]
        heads = {work: next(iter(jobs)) for work, jobs in self._waiting.items() if jobs}
        work = min(heads, key=lambda key: heads[key].number)
        queue = self._waiting[work]
        batch: list[_Job] = []
        characters = 0
        for job in queue:
            characters += len(job.line)
            is_full = len(batch) == self._max_batch_size or characters > self._max_batch_characters
            if batch and is_full:
                break
            batch.append(job)
        for job in batch:
            del queue[job]
        return work, batch

    async def _answer(self, worker: Worker, work: Work, jobs: list[_Job]) -> None:
        """Translate a batch; if that fails, its sentences are translated again, one by one."""
        self._metrics.batches.observe(len(jobs))
        try:
            answers = await worker.translate(work, [job.line for job in jobs])
        except Exception as error:
            self._metrics.failures.inc()
            await self._retry(work, [job for job in jobs if not job.answer.done()], error)
            return
        for job, answer in zip(jobs, answers, strict=True):
            if not job.answer.done():
                job.answer.set_result(answer)

    async def _retry(self, work: Work, jobs: list[_Job], error: Exception) -> None:
        died = isinstance(error, WorkerDiedError)
        why = "a worker died" if died else str(error) or repr(error)
        was_begun = not isinstance(error, WorkerGoneError)
        for job in jobs:
            if job.has_failed and was_begun:
                job.answer.set_exception(FailedError(f"translating failed twice: {why}"))
            else:
                job.has_failed |= was_begun
                self._again[job] = work
        async with self._arrived:
            self._arrived.notify(len(jobs))


class Matrices:
    """Mixing matrices for clients: a few at a time, and remembered, because they never change."""

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
