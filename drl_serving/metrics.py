"""What Prometheus scrapes, in base units; each application has a registry of its own."""

import time
from collections.abc import Callable

from litestar.types import Message, Scope
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

LATENCY_BUCKETS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
)  # fmt: skip


disable_created_metrics()  # type: ignore[no-untyped-call]  # series that nothing here reads


class Metrics:
    """The service's metrics and their registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "drl_http_requests",
            "HTTP answers.",
            ["method", "route", "status"],
            registry=registry,
        )
        self.decision_seconds = Histogram(
            "drl_decision_duration_seconds",
            "From a received body to the answer of POST /v1/decisions.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.actions = Counter(
            "drl_decisions",
            "Decided actions; redeliveries excluded.",
            ["action"],
            registry=registry,
        )
        self.reloads = Counter(
            "drl_model_reloads",
            "Releases seen by the service, by result: loaded, or why it was refused.",
            ["result"],
            registry=registry,
        )
        self.model_info = Gauge(
            "drl_model_info", "1 for the served model.", ["version", "sha256"], registry=registry
        )
        self.model_sequence = Gauge(
            "drl_model_sequence", "Sequence number of the served release.", registry=registry
        )
        self._model_age = Gauge(
            "drl_model_age_seconds", "Seconds since the served model was loaded.", registry=registry
        )
        self._episodes = Gauge(
            "drl_episodes_kept", "Episodes whose carry is kept.", registry=registry
        )
        self.landed = Counter(
            "drl_landed_events", "Events made durable and acknowledged.", registry=registry
        )
        self.dead_letters = Counter(
            "drl_dead_letters", "Telemetry records refused.", registry=registry
        )

    def watch_episodes(self, count: Callable[[], float]) -> None:
        """Read the number of kept episodes when scraped."""
        self._episodes.set_function(count)

    def model_loaded(self, version: str, sha256: str, sequence: int) -> None:
        """Count a swap and describe the model that is served from now on."""
        loaded = time.monotonic()
        self.reloads.labels("loaded").inc()
        self.model_info.clear()
        self.model_info.labels(version, sha256).set(1)
        self.model_sequence.set(sequence)
        self._model_age.set_function(lambda: time.monotonic() - loaded)

    async def before_send(self, message: Message, scope: Scope) -> None:
        """Count an answer by its route's template; paths of no route share one label."""
        if message["type"] == "http.response.start":
            route = scope.get("path_template") or "unmatched"
            method = str(scope.get("method"))
            self.requests.labels(method, route, str(message["status"])).inc()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
