"""The server's metrics for Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_SENTENCES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "resmlp_requests", "Answers.", ("path", "method", "status"), registry=registry
        )
        self.latency = Histogram(
            "resmlp_request_seconds", "Time to the answer.", ("path",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.in_work = Gauge(
            "resmlp_requests_in_work", "Requests not answered yet.", registry=registry
        )
        self.sentences = Counter(
            "resmlp_sentences", "Sentences translated.", ("pair",), registry=registry
        )
        self.batches = Histogram(
            "resmlp_batch_sentences", "Sentences per batch.", buckets=_SENTENCES, registry=registry
        )
        self.failures = Counter(
            "resmlp_batch_failures", "Batches that a worker failed on.", registry=registry
        )
        self.disconnected = Counter(
            "resmlp_clients_gone", "Clients that went away before their answer.", registry=registry
        )

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Add the number of waiting sentences, which is read whenever Prometheus asks."""
        gauge = Gauge(
            "resmlp_queue_sentences", "Sentences that wait for a worker.", registry=self.registry
        )
        gauge.set_function(lambda: float(waiting()))
