"""A server under load: nothing is lost or mixed, and its memory stays what it was."""

import asyncio
import gc
import http.client
import json
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import serve
from resmlp_mt.serving.app import Limits
from resmlp_mt.serving.workers import Answer, Work
from serving import Reversing, served, translated
from test_serve import running

PAIR = {"source": "en", "target": "de"}


class Permitted(Reversing):
    """A worker that translates as many batches as it has permits."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = threading.Semaphore(0)

    async def translate(self, work: Work, lines: list[str]) -> list[Answer]:
        while not self.permits.acquire(blocking=False):
            await asyncio.sleep(0.001)
        return await super().translate(work, lines)


def test_at_twice_the_capacity_nothing_is_lost_or_mixed() -> None:
    """For every two requests one sentence is translated: the others are refused, and told so.

    When all clients that are left wait for an answer, one more is translated.
    """
    clients, each = 48, 10
    worker, lock = Permitted(), threading.Lock()
    sent, asking, active = 0, 0, clients
    counts: Counter[str] = Counter()

    def client(number: int) -> None:
        nonlocal sent, asking, active
        host, port = server.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=300)
        for i in range(each):
            with lock:
                sent, asking = sent + 1, asking + 1
                if sent % 2 == 0 or asking == active:
                    worker.permits.release()
            text = f"client {number} text {i}"
            status, answer = serve.ask(connection, json.dumps({"q": text, **PAIR}))
            if status == 200:
                assert answer["translatedText"] == translated(text)
            else:
                assert "busy" in answer["error"] or "wait" in answer["error"], answer
            with lock:
                asking -= 1
                counts[str(status)] += 1
        connection.close()
        with lock:
            active -= 1
            if asking == active:
                worker.permits.release()

    limits = Limits(queue_size=16, max_batch_size=1, max_wait=300, client_requests=0)
    with served([worker], limits) as server, ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    assert set(counts) == {"200", "503"}
    assert counts.total() == clients * each
    answered = [line for _, lines in worker.batches for line in lines]
    assert len(answered) == len(set(answered)) == counts["200"]


def test_2000_requests_leave_no_memory_behind() -> None:
    """Blocks that Python has allocated, in this process, which has the clients too."""

    def ask(count: int) -> int:
        host, port = server.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=300)
        for i in range(count):
            body = json.dumps({"q": f"sentence {i} of many", **PAIR})
            assert serve.ask(connection, body)[0] == 200
        connection.close()
        for worker in workers:
            worker.batches.clear()
        gc.collect()
        return sys.getallocatedblocks()

    workers = [Reversing(), Reversing()]
    with served(workers) as server:
        before = ask(200)
        after = ask(2000)
    assert after - before < 2000 / 4  # not one of each request


@pytest.mark.slow
def test_20000_requests_leave_the_memory_of_server_and_workers_flat() -> None:
    """The server that comes with the package, its worker process included."""
    sentences = ["I am here.", "Where is the station?", "It rains.", "Tom sings.", "We know."]
    bodies = [json.dumps({"q": sentence, **PAIR}) for sentence in sentences]
    options = ("--workers", 1, "--beam", 1, "--client-requests", 0, "--max-wait", 300)
    with running(*options) as (process, address):
        port = int(address.rsplit(":", 1)[1])
        found = serve.memory_over(port, process.pid, bodies, 20_000)
    assert max(found[2:]) < 1.03 * found[1], found  # MiB after each tenth
