"""Open loop: Poisson arrivals against two workers, and five times what one can answer."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.serving.client import Job, Seen
from benchmarks.serving.closed import CLIENT_CORES, SERVER_CORES
from benchmarks.serving.processes import (
    CORES,
    Client,
    Running,
    first_answer_s,
    free_port,
    started,
)
from benchmarks.serving.servers import Server

RATE_PER_S = 300.0
FACTOR = 5.0
OVERLOADED_S = 20.0
SETTLE_S = 10.0


def tail_ms(seconds: Any) -> dict[str, float]:
    """Percentiles in milliseconds."""
    if not len(seconds):
        return {}
    p50, p99, p999 = np.percentile(seconds, [50, 99, 99.9]) * 1e3
    return {
        "p50": float(p50),
        "p99": float(p99),
        "p99.9": float(p999),
        "max": float(np.max(seconds)) * 1e3,
    }


@dataclass
class Arrivals:
    """Latencies from the moment that each request was due."""

    latencies: list[Any] = field(default_factory=list)
    jitter: list[Any] = field(default_factory=list)
    failed: int = 0

    def add(self, seen: Seen) -> None:
        """Take one run."""
        self.latencies.append(seen.times())
        self.jitter.append(np.frombuffer(seen.jitter))
        self.failed += seen.lost + sum(n for s, n in seen.statuses.items() if s != 200)

    def report(self) -> dict[str, Any]:
        """The figures."""
        every = np.concatenate(self.latencies)
        return {
            "requests": len(every),
            "failed": self.failed,
            "latency_ms": tail_ms(every),
            "sender_jitter_ms": tail_ms(np.concatenate(self.jitter)),
        }


def poisson(servers: list[Server], seconds: float, folder: Path) -> dict[str, Any]:
    """Each server for `seconds` in all, in turns of a quarter; with two workers' memory."""
    found = {server.name: Arrivals() for server in servers}
    memory: dict[str, tuple[float, float]] = {}
    client = Client(CORES)
    with ExitStack() as stack:
        running = [stack.enter_context(_running(server, CORES, folder)) for server in servers]
        for turn in range(4):
            for server, (process, port) in zip(servers, running, strict=True):
                job = Job(
                    kind="open",
                    port=port,
                    wire=server.wire,
                    connections=32,
                    seconds=seconds / 4,
                    rate_per_s=RATE_PER_S,
                    seed=100 + turn,
                )
                found[server.name].add(client.run(job))
                memory[server.name] = process.memory_mb()
    client.close()
    return {
        name: one.report() | {"memory_mb": dict(zip(("pss", "rss"), memory[name], strict=True))}
        for name, one in found.items()
    }


@contextmanager
def _running(server: Server, cores: Sequence[int], folder: Path) -> Iterator[tuple[Running, int]]:
    port, log = free_port(), folder / f"{server.name}-open.log"
    with started(server.command(port), server.environ(port), cores, log) as running:
        first_answer_s(running, port, server.wire.requests()[0], log)
        time.sleep(1.0)  # the other worker
        yield running, port


def overload(server: Server, folder: Path) -> dict[str, Any]:
    """Five times the capacity of one worker for a while, and what was before and after."""
    clients = [Client(CLIENT_CORES) for _ in range(2)]
    with _running(server, SERVER_CORES, folder) as (running, port):
        base = Job(kind="closed", port=port, wire=server.wire, connections=32, seconds=3.0)
        closed = _both(clients, base)
        capacity = sum(one.statuses.get(200, 0) / one.seconds for one in closed)
        calm = _open(base, RATE_PER_S, 5.0, 16, seed=1)
        uncontended = clients[0].run(calm)
        before = running.memory_mb()
        watch = _Peak(running)
        storm = _open(base, capacity * FACTOR / 2, OVERLOADED_S, 250, seed=2, intended=False)
        seen = _both(clients, storm)
        ended = time.perf_counter()
        peak = watch.stop()
        after_storm = clients[0].run(msgspec.structs.replace(calm, seed=9, seconds=SETTLE_S))
        gap = time.perf_counter() - ended - after_storm.seconds
        settled = running.memory_mb()
    for client in clients:
        client.close()
    times = np.concatenate([one.times() for one in seen])
    statuses: dict[int, int] = {}
    for one in seen:
        for status, number in one.statuses.items():
            statuses[status] = statuses.get(status, 0) + number
    answered = sum(statuses.values())
    seconds = max(one.seconds for one in seen)
    limit = 2 * tail_ms(uncontended.times())["p99"]
    return {
        "capacity_per_s": capacity,
        "sent_per_s": answered / seconds,
        "offered_per_s": (answered + sum(one.not_sent for one in seen)) / seconds,
        "accepted_per_s": statuses.get(200, 0) / seconds,
        "statuses": statuses,
        "refused_without_retry_after": sum(one.without_retry_after for one in seen),
        "connections_lost": sum(one.lost for one in seen),
        "accepted_ms": tail_ms(times),
        "uncontended_ms": tail_ms(uncontended.times()),
        "closed_loop_ms": tail_ms(np.concatenate([one.times() for one in closed])),
        "client_cpu_share": [one.cpu_share for one in seen],
        "memory_pss_mb": {"before": before[0], "peak": peak, "after": settled[0]},
        "recovery_s": max(0.0, gap) + _recovered_s(after_storm, limit / 1e3),
        "recovered_below_ms": limit,
    }


def _open(
    base: Job, rate: float, seconds: float, connections: int, *, seed: int, intended: bool = True
) -> Job:
    return msgspec.structs.replace(
        base,
        kind="open",
        rate_per_s=rate,
        seconds=seconds,
        connections=connections,
        seed=seed,
        from_intended=intended,
    )


def _both(clients: list[Client], job: Job) -> list[Seen]:
    for number, client in enumerate(clients):
        client.begin(msgspec.structs.replace(job, seed=job.seed + 50 * number))
    return [client.end() for client in clients]


def _recovered_s(seen: Seen, limit_s: float) -> float:
    """Seconds until the p99 of what is left of a run is within a limit."""
    at, times = np.frombuffer(seen.answered_at), seen.times()
    for second in np.arange(0.0, SETTLE_S, 0.25):
        rest = times[(at >= second) & (at < second + 2.0)]
        if len(rest) and np.percentile(rest, 99) <= limit_s:
            return float(second)
    return float("inf")


class _Peak:
    """The most memory that a server has while it is watched."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._most = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self._most = max(self._most, self._running.memory_mb()[0])

    def stop(self) -> float:
        """The most so far, in MB."""
        self._stop.set()
        self._thread.join()
        return self._most
