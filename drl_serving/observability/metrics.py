"""Prometheus metrics in base units, aggregated over the workers.

With one worker the values live in this process. With several, `prepare` names a folder before they
start, in which `prometheus_client` keeps each worker's values in mapped files; a scrape adds them
up. What is counted for every request is buffered and flushed every 100 ms by `flush_periodically`.
"""

import asyncio
import contextlib
import os
import shutil
import threading
import time
from collections import Counter as Bag
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
from litestar.types import Message, Scope
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    multiprocess,
    values,
)
from prometheus_client.core import GaugeMetricFamily

from drl_core.policy.features import FEATURES, SIGNAL_COUNT, Array, observe
from drl_core.settings import Settings
from drl_core.telemetry.event import SIGNALS
from drl_serving.observability.buffered_metrics import (
    BufferedCounter,
    BufferedCounterSeries,
    BufferedHistogram,
    BufferedHistogramFamily,
)

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
FLUSH_S = 0.1
SAMPLE_S = 1.0
LATENCY_BUCKETS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
)  # fmt: skip
MAX_WINDOWS = 20_000
"""Decided windows that wait to be summed up; the oldest of more are left out."""
_NOW_FEATURES = (*FEATURES[:12], *FEATURES[24:27], *FEATURES[28:])
"""Features that a window has by itself; the others carry its past."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

disable_created_metrics()  # type: ignore[no-untyped-call]  # series that nothing here reads


def prepare(settings: Settings) -> None:
    """Name the folder that the workers share; called before they start, in the process above them.

    Folders of services that have ended are removed. One worker needs none.
    """
    if settings.serving.workers == 1:
        return
    root = settings.state_path / "metrics"
    root.mkdir(parents=True, exist_ok=True)
    for old in root.iterdir():
        if not Path(f"/proc/{old.name}").exists() or old.name == str(os.getpid()):
            shutil.rmtree(old)
    folder = root / str(os.getpid())
    folder.mkdir()
    os.environ[FOLDER_VARIABLE] = str(folder)
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]  # not that of import


class Metrics:
    """The service's metrics; one of it in each worker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._shared = bool(values.ValueClass._multiprocess)
        self._flushed: list[
            BufferedCounter | BufferedCounterSeries | BufferedHistogram | BufferedHistogramFamily
        ] = []
        self._watched: list[tuple[Gauge, Callable[[], float]]] = []
        self._windows: deque[Array] = deque(maxlen=MAX_WINDOWS)
        self.observe_window: Callable[[Array], None] = self._windows.append
        """Take a decided window [14] for the means of the features and the defaulted fields."""
        self._flushing = threading.Lock()
        self._served: tuple[str, str] | None = None
        if not self._shared:
            ProcessCollector(registry=self.registry)
        self._request_metrics()
        self._decision_metrics()
        self._model_metrics()
        self._telemetry_metrics()
        self._worker_metrics()

    def _request_metrics(self) -> None:
        self.requests = self._buffered_counter(
            "drl_http_requests", "HTTP answers.", "method", "route", "status"
        )
        self.request_seconds = self._histogram_family(
            "drl_http_request_duration_seconds", "From a request's begin to its answer's.", "route"
        )
        self.in_flight = self._gauge("drl_requests_in_flight", "Requests in flight.", "livesum")
        self.shed = self._single_counter("drl_requests_shed", "Requests above the in-flight limit.")
        self.refusals = self._buffered_counter(
            "drl_access_refused",
            "Requests refused: missing, credentials, throttled, scope or rate.",
            "reason",
        )
        for reason in ("missing", "credentials", "throttled", "scope", "rate"):
            self.refusals.labels(reason)

    def _decision_metrics(self) -> None:
        self.decision_seconds = self._buffered_histogram(
            "drl_decision_duration_seconds",
            "From a received body to the answer of POST /v1/decisions.",
        )
        self.queue_seconds = self._buffered_histogram(
            "drl_decision_queue_seconds", "Queueing of a request within its turn of the event loop."
        )
        self.compute_seconds = self._buffered_histogram(
            "drl_decision_compute_seconds", "Of the model alone, for one call of it."
        )
        self.actions = self._buffered_counter(
            "drl_decisions", "Decided actions; redeliveries excluded.", "action", "mode", "role"
        )
        self.shadow = self._buffered_counter(
            "drl_shadow_comparisons",
            "Decisions compared with the other model's.",
            "role",
            "action",
            "other_action",
            "agreement",
        )
        self.shadow_skipped = self._single_counter(
            "drl_shadow_skipped", "Decisions not compared, since the comparison fell behind."
        )
        self._defaulted = self._counter(
            "drl_defaulted_fields", "Decided windows in which a signal was not measured.", "field"
        )
        self._feature_sum = self._counter(
            "drl_feature_sum", "Sum of a feature, in [0, 1], over decided windows.", "feature"
        )
        self._observed = self._counter("drl_feature_observations", "Windows in drl_feature_sum.")
        for name in SIGNALS:
            self._defaulted.labels(name)
        self._episodes = self._gauge(
            "drl_episodes_kept", "Episodes whose carry is kept.", "livemax"
        )

    def _model_metrics(self) -> None:
        self.reloads = self._counter(
            "drl_model_reloads",
            "Releases seen by the service, by result: loaded, or why it was refused.",
            "result",
        )
        self.model_sequence = self._gauge(
            "drl_model_sequence",
            "Release served by the worker that is furthest behind; 0 without a model.",
            "livemin",
        )
        self._model_loaded_at = self._gauge(
            "drl_model_loaded_timestamp_seconds", "When the last worker took it.", "livemax"
        )

    def _telemetry_metrics(self) -> None:
        self.landed = self._counter("drl_landed_events", "Events made durable and acknowledged.")
        self.dead_letters = self._counter("drl_dead_letters", "Telemetry records refused.")
        self.telemetry_buffered = self._gauge(
            "drl_telemetry_buffered_events", "Events that wait to become durable.", "livesum"
        )
        self.outbox_depth = self._gauge(
            "drl_outbox_depth", "Rows that wait for the database.", "livemostrecent"
        )
        self.outbox_oldest_age = self._gauge(
            "drl_outbox_oldest_age_seconds", "Age of the one that waits longest.", "livemostrecent"
        )
        self.outbox_drained = self._counter("drl_outbox_drained", "Rows taken to the database.")
        self.outbox_set_aside = self._counter(
            "drl_outbox_set_aside", "Rows that the database does not take."
        )

    def _worker_metrics(self) -> None:
        self._cpu = self._gauge("drl_worker_cpu_seconds", "Used by a worker so far.", "liveall")
        self._memory = self._gauge("drl_worker_resident_memory_bytes", "Of a worker.", "liveall")
        self._sample()

    def watch_episodes(self, count: Callable[[], float]) -> None:
        """Read the number of kept episodes once a second, and when scraped."""
        self.watch_gauge(self._episodes, count)

    def watch_gauge(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Set a gauge once a second, and when scraped, to what `read` gives; it must be quick."""
        self._watched.append((gauge, read))
        gauge.set(read())

    def compared(self, role: str, action: str, other: str, count: int) -> None:
        """Count how often one role's action met the other model's."""
        agreement = "agree" if action == other else "disagree"
        self.shadow.labels(role, action, other, agreement).inc(count)

    def model_loaded(self, version: str, sha256: str, sequence: int) -> None:
        """Count a swap and describe the model that is served from now on."""
        self.reloads.labels("loaded").inc(1)
        self._served = (version, sha256)
        if self._shared:
            path = _served_by(os.getpid())
            new = path.with_suffix(".new")
            new.write_bytes(msgspec.json.encode(self._served))
            new.replace(path)
        self.model_sequence.set(sequence)
        self._model_loaded_at.set(time.time())

    async def before_send(self, message: Message, scope: Scope) -> None:
        """Count an answer by its route's template; paths of no route share one label.

        Where `scope["state"]["began"]` has `time.perf_counter()` of its begin, it is timed as well.
        """
        if message["type"] == "http.response.start":
            route = scope.get("path_template") or "unmatched"
            began = scope.get("state", {}).get("began")
            seconds = None if began is None else time.perf_counter() - began
            self.answered(str(scope.get("method")), route, message["status"], seconds)

    def answered(self, method: str, route: str, status: int, seconds: float | None = None) -> None:
        """Count an answer, and time it."""
        self.requests.labels(method, route, str(status)).inc(1)
        if seconds is not None:
            self.request_seconds.labels(route).observe(seconds)

    async def flush_periodically(self) -> None:
        """Until cancelled: flush buffered metrics every 100 ms, sample gauges every second."""
        sampled = time.monotonic()
        while True:
            await asyncio.sleep(FLUSH_S)
            self.flush()
            if time.monotonic() - sampled >= SAMPLE_S:
                sampled = time.monotonic()
                self._sample()

    def flush(self) -> None:
        """Flush the buffered metrics; from any thread."""
        with self._flushing:
            for buffered in self._flushed:
                buffered.flush()
            if self._windows:
                waiting = [self._windows.popleft() for _ in range(len(self._windows))]
                self._sum_up(np.stack(waiting))

    def close(self) -> None:
        """Flush the last, and take this worker out of the gauges."""
        self.flush()
        if self._shared:
            multiprocess.mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]
            _served_by(os.getpid()).unlink(missing_ok=True)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format; takes milliseconds with several workers."""
        return generate_latest(self._exposition())

    def collect(self) -> list[Metric]:
        """All metrics, of all workers; as long as `exposition`."""
        return list(self._exposition().collect())

    def _exposition(self) -> "_Exposition":
        self.flush()
        self._sample()
        if not self._shared:
            return _Exposition(self.registry, [self._served] if self._served else [])
        folder = Path(os.environ[FOLDER_VARIABLE])
        _remove_dead_workers(folder)
        gathered = multiprocess.MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]
        return _Exposition(gathered, _served(folder))

    def _sum_up(self, windows: Array) -> None:
        missing = np.isnan(windows[:, :SIGNAL_COUNT]).sum(axis=0)
        for name, count in zip(SIGNALS, missing.tolist(), strict=True):
            if count:
                self._defaulted.labels(name).inc(count)
        now, rest = observe(np, windows)
        sums = np.concatenate((now, *rest), axis=1).sum(axis=0)
        for name, total in zip(_NOW_FEATURES, sums.tolist(), strict=True):
            self._feature_sum.labels(name).inc(total)
        self._observed.inc(len(windows))

    def _sample(self) -> None:
        for gauge, read in self._watched:
            gauge.set(read())
        self._cpu.set(time.process_time())
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        self._memory.set(resident * _PAGE_BYTES)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, mode: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry, multiprocess_mode=mode)  # type: ignore[arg-type]

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=LATENCY_BUCKETS, registry=self.registry)

    def _buffered_counter(self, name: str, text: str, *labels: str) -> BufferedCounter:
        counter = BufferedCounter(self._counter(name, text, *labels), len(labels))
        self._flushed.append(counter)
        return counter

    def _single_counter(self, name: str, text: str) -> BufferedCounterSeries:
        counter = BufferedCounterSeries(self._counter(name, text))
        self._flushed.append(counter)
        return counter

    def _buffered_histogram(self, name: str, text: str) -> BufferedHistogram:
        made = BufferedHistogram(self._histogram(name, text), LATENCY_BUCKETS)
        self._flushed.append(made)
        return made

    def _histogram_family(self, name: str, text: str, label: str) -> BufferedHistogramFamily:
        made = BufferedHistogramFamily(self._histogram(name, text, label), LATENCY_BUCKETS)
        self._flushed.append(made)
        return made


class _Exposition(CollectorRegistry):
    """What another registry or collector has, and which models are served.

    Those come and go, and a series of `prometheus_client` stays in its mapped file for good.
    """

    def __init__(
        self,
        source: CollectorRegistry | multiprocess.MultiProcessCollector,
        served: Iterable[tuple[str, str]],
    ) -> None:
        super().__init__()
        self._source = source
        self._served = Bag(served)

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        yield from self._source.collect()
        models = GaugeMetricFamily(
            "drl_model_info", "Workers that serve this model.", labels=("version", "sha256")
        )
        for model, workers in self._served.items():
            models.add_metric(model, workers)
        yield models


def _served_by(pid: int) -> Path:
    return Path(os.environ[FOLDER_VARIABLE]) / f"served_{pid}.json"


def _served(folder: Path) -> Iterator[tuple[str, str]]:
    for path in folder.glob("served_*.json"):
        with contextlib.suppress(FileNotFoundError):  # its worker has just ended
            yield msgspec.json.decode(path.read_bytes(), type=tuple[str, str])


def _remove_dead_workers(folder: Path) -> None:
    """Take killed workers out of the gauges; their counts stay."""
    pids = {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_live*.db")}
    for pid in pids:
        if not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(FileNotFoundError):  # another worker was first
                multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
            _served_by(pid).unlink(missing_ok=True)
