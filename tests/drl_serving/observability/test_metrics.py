"""Metrics: cheap to gather, exact when asked for, and the same from every worker."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import values
from prometheus_client.parser import text_string_to_metric_families

from drl_core.settings import Serving, Settings
from drl_serving.observability import metrics as metrics_module
from drl_serving.observability.metrics import FOLDER_VARIABLE, LATENCY_BUCKETS, Metrics

Labels = dict[str, str]


def samples(text: str, name: str) -> list[tuple[Labels, float]]:
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def total(text: str, name: str, **labels: str) -> float:
    return sum(v for found, v in samples(text, name) if labels.items() <= found.items())


def test_what_many_threads_tally_is_counted_once() -> None:
    metrics = Metrics()

    def work() -> None:
        for n in range(2000):
            metrics.requests.labels("GET", "/x", "200").inc(1)
            metrics.decision_seconds.observe(0.0004 if n % 2 else 0.6)
            if n % 500 == 0:
                metrics.flush()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = metrics.exposition().decode()
    assert total(text, "drl_http_requests_total") == 8000
    name = "drl_decision_duration_seconds"
    assert total(text, f"{name}_count") == 8000
    assert total(text, f"{name}_bucket", le="0.0005") == 4000
    assert total(text, f"{name}_bucket", le="0.25") == 4000
    assert total(text, f"{name}_bucket", le="1.0") == 8000
    assert total(text, f"{name}_sum") == pytest.approx(4000 * 0.6004)


@pytest.mark.parametrize("seconds", [*LATENCY_BUCKETS, 0.0, 0.0011, 5.0])
def test_a_value_falls_into_the_bucket_that_prometheus_client_puts_it_in(seconds: float) -> None:
    ours, theirs = Metrics(), Metrics()
    ours.decision_seconds.observe(seconds)
    theirs.decision_seconds._histogram.observe(seconds)
    name = "drl_decision_duration_seconds_bucket"
    assert samples(ours.exposition().decode(), name) == samples(theirs.exposition().decode(), name)


def test_features_and_missing_signals_are_summed_over_decided_windows() -> None:
    metrics = Metrics()
    window = np.zeros(14)
    window[7], window[12] = 50.0, 1.0  # half of the processor, in a window of one second
    metrics.observe_window(window)
    lacking = window.copy()
    lacking[[7, 8]] = np.nan
    metrics.observe_window(lacking)
    text = metrics.exposition().decode()
    assert total(text, "drl_feature_observations_total") == 2
    assert total(text, "drl_feature_sum_total", feature="cpu") == pytest.approx(0.5)
    assert total(text, "drl_feature_sum_total", feature="measured") == pytest.approx(1 + 10 / 12)
    assert total(text, "drl_defaulted_fields_total", field="cpu_usage") == 1
    assert total(text, "drl_defaulted_fields_total", field="syscall_count") == 0


def test_only_the_served_model_is_shown() -> None:
    metrics = Metrics()
    metrics.model_loaded("v1", "a", 1)
    metrics.model_loaded("v2", "b", 2)
    text = metrics.exposition().decode()
    assert samples(text, "drl_model_info") == [({"version": "v2", "sha256": "b"}, 1.0)]
    assert total(text, "drl_model_sequence") == 2
    assert total(text, "drl_model_reloads_total", result="loaded") == 2


_WORKER = """
import sys, numpy as np
from drl_serving.observability.metrics import Metrics
metrics = Metrics()
metrics.model_loaded("v1", "a", int(sys.argv[1]))
for _ in range(100):
    metrics.requests.labels("GET", "/x", "200").inc(1)
    metrics.decision_seconds.observe(0.002)
metrics.in_flight.set(3)
metrics.outbox_depth.set(7)
print(metrics.exposition().decode(), end="", flush=True)
print("--", flush=True)
if sys.stdin.readline() == "close\\n":
    metrics.close()
"""


def test_workers_add_up_and_the_dead_leave_only_their_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)  # as it was, afterwards
    ended = tmp_path / "state" / "metrics" / "999999999"
    ended.mkdir(parents=True)
    metrics_module.prepare(Settings(home=str(tmp_path), serving=Serving(workers=2)))
    assert not ended.exists()
    folder = os.environ[FOLDER_VARIABLE]

    def start(sequence: str) -> tuple["subprocess.Popen[str]", str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, sequence],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, FOLDER_VARIABLE: folder},
        )
        assert process.stdout is not None
        return process, "".join(iter(process.stdout.readline, "--\n"))

    first, _ = start("4")
    second, text = start("5")
    assert total(text, "drl_http_requests_total") == 200
    assert total(text, "drl_decision_duration_seconds_count") == 200
    assert total(text, "drl_model_info") == 2
    assert total(text, "drl_model_sequence") == 4, "of the worker that is behind"
    assert total(text, "drl_requests_in_flight") == 6
    assert total(text, "drl_outbox_depth") == 7, "all see the same one"
    assert len(samples(text, "drl_worker_cpu_seconds")) == 2
    first.kill()
    first.communicate()
    second.communicate("close\n")
    third, text = start("5")
    third.kill()
    third.communicate()
    assert total(text, "drl_http_requests_total") == 300
    assert total(text, "drl_model_info") == 1
    assert total(text, "drl_model_sequence") == 5
    assert total(text, "drl_requests_in_flight") == 3
    assert [labels["pid"] for labels, _ in samples(text, "drl_worker_cpu_seconds")] == [
        str(third.pid)
    ]


@pytest.mark.integration
def test_two_workers_count_every_request_once_and_survive_one_of_them(
    publisher: Any, start_service: Callable[..., Any]
) -> None:
    publisher.publish("v1")
    with start_service(publisher.settings.home_path, DRL_SERVING__WORKERS="2") as service:
        base = str(service.client.base_url)

        def metric(name: str, **labels: str) -> float:
            return total(httpx.get(f"{base}/metrics", timeout=60).text, name, **labels)

        def ask(episode: int) -> None:
            with httpx.Client(base_url=base, timeout=60) as client:
                for step in range(5):
                    event = {"sandbox_id": "s", "episode_id": f"e{episode}", "step": step}
                    response = client.post("/v1/decisions", json={**event, "window_s": 1.0})
                    assert response.status_code == 200, response.text

        service.wait_until(lambda: metric("drl_model_info", version="v1") == 2)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(20)))
        route = {"route": "/v1/decisions", "status": "200"}
        service.wait_until(lambda: metric("drl_http_requests_total", **route) >= 100)
        assert metric("drl_http_requests_total", **route) == 100
        assert metric("drl_decisions_total") == 100
        assert metric("drl_feature_observations_total") == 100
        assert metric("drl_decision_queue_seconds_count") == 100
        workers = samples(httpx.get(f"{base}/metrics", timeout=60).text, "drl_worker_cpu_seconds")
        killed = int(workers[0][0]["pid"])
        os.kill(killed, signal.SIGKILL)

        def replaced() -> bool:
            try:
                found = samples(
                    httpx.get(f"{base}/metrics", timeout=60).text, "drl_worker_cpu_seconds"
                )
            except httpx.TransportError:
                return False  # the connection was the killed worker's
            pids = {int(labels["pid"]) for labels, _ in found}
            return len(pids) == 2 and killed not in pids

        service.wait_until(replaced)
        assert metric("drl_decisions_total") == 100
