"""The load beside `benchmarks.releases`: processes that ask for decisions and check the answers.

A URL comes in; how many requests failed, and how many answers had Q-values of another version than
the one they named, come out. It is a module of its own since its processes import nothing else.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

PATIENCE_S = 60.0
RATE_PER_S = 75.0
"""Of one process, so that what is measured is not the generator on the same processors."""
OFFSETS = 50
"""Variant n of the model adds n % OFFSETS to every Q-value, so that answers tell their version."""
EVENT = {"step": 0, "syscall_count": 10, "cpu_usage": 50, "bytes_sent": 1e5}


@dataclass
class Load:
    """What the load generator saw."""

    requests: int = 0
    failed: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    versions: int = 0
    seconds: float = 0.0


def generate(url: str, base: list[float], stop: Any, results: Any) -> None:
    """Ask for decisions, one after another, until told to stop; a process of its own.

    Args:
        url: of the service.
        base: Q-values of variant 0 for `EVENT`.
        stop: an event.
        results: a queue that gets None at the beginning and one `Load` in the end.
    """
    load, seen, began = Load(), set[str](), time.perf_counter()
    results.put(None)  # running
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        while not stop.is_set():
            time.sleep(max(0.0, began + load.requests / RATE_PER_S - time.perf_counter()))
            load.requests += 1
            body = {**EVENT, "episode_id": f"{os.getpid()}-{load.requests}"}
            try:
                answer = client.post("/v1/decisions", json=body)
            except httpx.TransportError as error:
                load.failed.append(repr(error))
                continue
            if answer.status_code != 200:
                load.failed.append(answer.text)
                continue
            decision = answer.json()
            version = decision["model_version"]
            seen.add(version)
            offset = int(version.removeprefix("v")) % OFFSETS
            if not np.allclose(decision["q_values"], np.array(base) + offset, atol=1e-4):
                load.mismatched.append(f"{version}: {decision['q_values']}")
    load.versions, load.seconds = len(seen), time.perf_counter() - began
    results.put(load)


@contextlib.contextmanager
def under_load(url: str, clients: int = 2) -> Iterator[list[Load]]:
    """Load while the body runs; the list is filled when it ends. Variant 0 must be served."""
    body = {**EVENT, "episode_id": "base"}
    base = httpx.post(f"{url}/v1/decisions", json=body, timeout=PATIENCE_S).json()["q_values"]
    context = multiprocessing.get_context("spawn")
    stop, results = context.Event(), context.Queue()
    processes = [
        context.Process(target=generate, args=(url, base, stop, results)) for _ in range(clients)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        results.get(timeout=PATIENCE_S)
    loads: list[Load] = []
    try:
        yield loads
    finally:
        stop.set()
        loads += [results.get(timeout=PATIENCE_S) for _ in processes]
        for process in processes:
            process.join(PATIENCE_S)
