"""Closed loop: interleaved rounds over all servers, with 1, 16 and 64 connections; batches too."""

import contextlib
import http.client
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.serving import payloads
from benchmarks.serving.client import Job
from benchmarks.serving.payloads import ROWS, Wire
from benchmarks.serving.processes import (
    CORES,
    ROOT,
    Client,
    Running,
    environment,
    first_answer_s,
    free_port,
    started,
)
from benchmarks.serving.servers import Home, Server

CONNECTIONS = (1, 16, 64)
SERVER_CORES, CLIENT_CORES = CORES[:1], CORES[1:2] or CORES
BATCH_CONNECTIONS = 2
INFER = "/v2/models/drl-policy/infer"


@dataclass
class Row:
    """What was measured of one way to ask a server; one value for each round."""

    start_s: list[float] = field(default_factory=list)
    cpu_us: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    database_us: list[float] = field(default_factory=list)
    """Of PostgreSQL beside our service, at 16 connections."""
    per_s: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    p50_ms: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    p99_ms: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    client_share: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    pss_mb: float = 0.0
    rss_mb: float = 0.0
    errors: int = 0


@dataclass(frozen=True)
class Target:
    """A running server and one way to ask it."""

    name: str
    running: Running
    port: int
    wire: Wire


def start_times(
    servers: Sequence[Server], rounds: int, folder: Path, client: Client, rows: dict[str, Row]
) -> None:
    """Start and stop all servers in turn; memory after a little load, while each runs alone.

    Alone, since pages that several servers map would count for each of them in part.
    """
    for _ in range(rounds):
        for server in servers:
            with _started(server, folder, rows) as target:
                job = Job(
                    kind="closed", port=target.port, wire=target.wire, connections=16, seconds=0.5
                )
                client.run(job)
                row = rows[server.name]
                row.pss_mb, row.rss_mb = target.running.memory_mb()


@contextlib.contextmanager
def all_started(
    servers: Sequence[Server], folder: Path, rows: dict[str, Row]
) -> Iterator[list[Target]]:
    """All servers at once, each idle unless it is asked."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_started(server, folder, rows)) for server in servers]


@contextlib.contextmanager
def _started(server: Server, folder: Path, rows: dict[str, Row]) -> Iterator[Target]:
    port, log = free_port(), folder / f"{server.name.replace(' ', '-')}.log"
    episode = b"%012d" % (time.monotonic_ns() % 10**12)
    request = server.wire.requests()[0].replace(payloads.EPISODE.encode(), episode)
    with started(server.command(port), server.environ(port), SERVER_CORES, log) as running:
        took = first_answer_s(running, port, request, log)
        rows.setdefault(server.name, Row()).start_s.append(took)
        yield Target(server.name, running, port, server.wire)


def rounds(
    targets: Sequence[Target],
    count: int,
    seconds: float,
    client: Client,
    database: int,
    rows: dict[str, Row],
) -> None:
    """Ask all in turn, `count` times, with each number of connections."""
    postgres = _Postgres(database)
    for number in range(count):
        for connections in CONNECTIONS:
            for target in targets:
                row = rows.setdefault(target.name, Row())
                job = Job(
                    kind="closed",
                    port=target.port,
                    wire=target.wire,
                    connections=connections,
                    seconds=seconds,
                    seed=1 + number * 8 + CONNECTIONS.index(connections),  # 0 has warmed up
                )
                before, kept = target.running.cpu_s(), postgres.cpu_s()
                seen = client.run(job)
                used = target.running.cpu_s() - before
                answers = sum(seen.statuses.values())
                row.errors += seen.lost + answers - seen.statuses.get(200, 0)
                row.cpu_us[connections].append(used / answers * 1e6)
                if connections == 16 and target.name.startswith("drl"):
                    row.database_us.append((postgres.cpu_s() - kept) / answers * 1e6)
                row.per_s[connections].append(answers / seen.seconds)
                if not len(seen.times()):
                    raise RuntimeError(f"{target.name}: no answer 200, but {dict(seen.statuses)}")
                p50, p99 = np.percentile(seen.times() * 1e3, [50, 99])
                row.p50_ms[connections].append(float(p50))
                row.p99_ms[connections].append(float(p99))
                row.client_share[connections].append(seen.cpu_share)


class _Postgres:
    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def cpu_s(self) -> float:
        total = 0.0
        for one in [self._root, *self._root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(one.cpu_times()[:4])
        return total


def batches(home: Home, drl: Target, mlserver: Target | None, count: int) -> dict[str, list[float]]:
    """Rows a second in batches of 1024, all ways in turn."""
    table = payloads.table()
    windows, carry = table[:, :14], table[:, 14:]
    tensors = payloads.tensors(windows, carry).encode()
    ways: list[tuple[str, Target, str, bytes, dict[str, str]]] = [
        ("drl, raw rows", drl, "/v1/decisions/rows", table.tobytes(), _octets(home)),
        ("drl, V2 JSON", drl, INFER, tensors, _json(home)),
    ]
    if mlserver is not None:
        ways.append(("MLServer, V2 JSON", mlserver, INFER, tensors, _json(home)))
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(count):
        found["ONNX Runtime, in-process"].append(_in_process(home))
        for name, target, path, body, headers in ways:
            found[name].append(_over_http(target.port, path, body, headers))
    return found


def _octets(home: Home) -> dict[str, str]:
    return home.headers | {"Content-Type": "application/octet-stream"}


def _json(home: Home) -> dict[str, str]:
    return home.headers | {"Content-Type": "application/json"}


def _over_http(port: int, path: str, body: bytes, headers: dict[str, str]) -> float:
    """Rows a second over `BATCH_CONNECTIONS`: one is answered while the other is prepared."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CLIENT_CORES)
    try:
        with ThreadPoolExecutor(BATCH_CONNECTIONS) as threads:
            asking = [
                threads.submit(_ask, port, path, body, headers) for _ in range(BATCH_CONNECTIONS)
            ]
            return sum(one.result() for one in asking)
    finally:
        os.sched_setaffinity(0, cores)


def _ask(port: int, path: str, body: bytes, headers: dict[str, str]) -> float:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as one:
        times: list[float] = []
        until = time.perf_counter() + 0.7
        while time.perf_counter() < until or len(times) < 3:
            began = time.perf_counter()
            one.request("POST", path, body, headers)
            answer = one.getresponse()
            content = answer.read()
            times.append(time.perf_counter() - began)
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status} {content[:200]!r}")
    return ROWS / float(np.median(times))


_RUN = """
import sys, time
import numpy as np
from benchmarks.serving import payloads
from benchmarks.serving.peers.scoring import session
opened, table = session(), payloads.table()
windows, carry = (np.ascontiguousarray(part) for part in (table[:, :14], table[:, 14:]))
times = []
until = time.perf_counter() + 0.5
while time.perf_counter() < until:
    began = time.perf_counter()
    opened.run(["q_values", "carry_after"], {"windows": windows, "carry": carry})
    times.append(time.perf_counter() - began)
print(payloads.ROWS / float(np.median(times)))
"""


def _in_process(home: Home) -> float:
    command: list[Any] = ["taskset", "-c", str(SERVER_CORES[0]), sys.executable, "-c", _RUN]
    done = subprocess.run(
        command,
        env=environment({"BENCH_MODEL": str(home.model)}),
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return float(done.stdout)


__all__ = ["CLIENT_CORES", "Row", "Target", "all_started", "batches", "rounds", "start_times"]
