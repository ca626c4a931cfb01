"""`python -m benchmarks.releases [--releases N] [--json]`: N releases under load, a fifth hostile.

Two real workers serve decisions to a load generator while releases are published as fast as every
worker has taken or refused the one before. Every fifth is hostile, in one of eight ways, put
straight into the store as somebody with write access (and, for what a signature would stop, with
the signing key) would. Printed are the failed requests, the refusals by name, how long a publish
took until every worker served it, the growth of the workers' memory, and whether every answer's
Q-values were those of the version that it named.

The integration test runs the same functions on less.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.release_load import Load, under_load
from benchmarks.release_variants import HOSTILE, Publisher

PATIENCE_S = 60.0
"""How long anything is waited for; a bound for what hangs, not a goal."""


@dataclass
class Workers:
    """A running service, and what its workers wrote to the log."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path
    count: int
    _read: int = 0
    _lines: list[dict[str, Any]] = field(default_factory=list)

    def pids(self) -> list[int]:
        """The workers' processes, those that took a model."""
        self.read()
        return sorted({line["pid"] for line in self._lines if line["event"] == "model loaded"})

    def read(self) -> None:
        """Take new whole lines of the log."""
        with self.log.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content.rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                self._lines.append(json.loads(line))

    def wait(self, holds: Callable[[dict[str, Any]], bool], since: float) -> list[dict[str, Any]]:
        """One line of each worker that fits, written after `since`, which is a Unix time."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            self.read()
            recent = [line for line in self._lines[-200:] if _when(line) >= since and holds(line)]
            found = {line["pid"]: line for line in reversed(recent)}
            if len(found) >= self.count:
                return list(found.values())
            if self.process.poll() is not None:
                raise RuntimeError(f"the service has ended; see {self.log}")
            time.sleep(0.002)
        raise RuntimeError(f"the workers never wrote what was waited for; see {self.log}")

    def memory(self) -> dict[str, float]:
        """MB of the workers, pages that they share counted once (PSS): all, and what is their own.

        The rest is mapped files: libraries, and the decisions that the workers share.
        """
        found = {"all": 0.0, "own": 0.0}
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("Pss", "Pss_Anon"):
                    kind = "all" if name == "Pss" else "own"
                    found[kind] += int(value.split()[0]) * 1024 / 1e6
        return found


def _when(line: dict[str, Any]) -> float:
    stamp = str(line.get("timestamp", "1970-01-01T00:00:00+00:00"))
    return dt.datetime.fromisoformat(stamp).timestamp()


@contextlib.contextmanager
def serving(home: Path, workers: int = 2) -> Iterator[Workers]:
    """The real service on a free port; a first release must be there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {name: text for name, text in os.environ.items() if not name.startswith("DRL_")} | {
        "DRL_HOME": str(home),
        "DRL_SERVING__PORT": str(port),
        "DRL_SERVING__WORKERS": str(workers),
        "DRL_SERVING__MAX_EPISODES": "2000",  # the shared memory is full soon, and stays
        "DRL_SERVING__DECISION_LOG_SHARE": "0",  # nothing grows but what releases make grow
    }
    log = home / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "drl_serving"], env=environ, stdout=output, stderr=output
        )
    try:
        service = Workers(process, f"http://127.0.0.1:{port}", log, workers)
        service.wait(lambda line: line.get("event") == "model loaded", 0.0)
        yield service
    finally:
        process.terminate()
        process.wait(30)


@dataclass
class Outcome:
    """What a run showed."""

    releases: int = 0
    seconds: float = 0.0
    refused: dict[str, int] = field(default_factory=dict)
    """Refusals by every worker under the expected name, by way of being hostile."""
    misnamed: list[str] = field(default_factory=list)
    publish_ms: list[float] = field(default_factory=list)
    """From the call of publish to the last worker's swap."""
    pointer_ms: list[float] = field(default_factory=list)
    """From the pointer's rename to the last worker's swap."""
    memory_before: dict[str, float] = field(default_factory=dict)
    memory_after: dict[str, float] = field(default_factory=dict)
    loads: list[Load] = field(default_factory=list)


def storm(publisher: Publisher, service: Workers, releases: int, warm_up: int) -> Outcome:
    """Publish under load, every fifth hostile.

    Args:
        publisher: of the service's store, variant 0 released.
        service: running.
        releases: how many, hostile ones included.
        warm_up: sound releases before the memory is first read.
    """
    outcome, refused = Outcome(releases=releases), Counter[str]()
    with under_load(service.url) as loads:
        for number in range(1, warm_up + 1):
            _sound(publisher, service, number)
        outcome.memory_before = service.memory()
        began = time.perf_counter()
        ways = list(HOSTILE)
        for turn in range(releases):
            number = warm_up + 1 + turn
            if turn % 5 == 4:
                way = ways[turn // 5 % len(ways)]
                reasons = _hostile(publisher, service, number, way)
                if reasons == {HOSTILE[way][1]}:
                    refused[way] += 1
                else:
                    outcome.misnamed.append(f"{way}: {sorted(reasons)}")
            else:
                whole, pointer = _sound(publisher, service, number)
                outcome.publish_ms.append(whole)
                outcome.pointer_ms.append(pointer)
        outcome.seconds = time.perf_counter() - began
        outcome.memory_after = service.memory()
    outcome.refused, outcome.loads = dict(refused), loads
    return outcome


def _sound(publisher: Publisher, service: Workers, number: int) -> tuple[float, float]:
    model, manifest = publisher.model(number), publisher.manifest(number)
    publisher.old = publisher.store.current_path.read_bytes()
    called = time.time()
    sequence = publisher.store.publish(model, manifest, publisher.key).sequence
    pointed = publisher.store.current_path.stat().st_mtime
    lines = service.wait(
        lambda line: line.get("event") == "model loaded" and line["sequence"] == sequence, called
    )
    last = max(_when(line) for line in lines)
    return (last - called) * 1e3, (last - pointed) * 1e3


def _hostile(publisher: Publisher, service: Workers, number: int, way: str) -> set[str]:
    began = time.time()
    HOSTILE[way][0](publisher, number)
    lines = service.wait(
        lambda line: line.get("event") in ("release refused", "model loaded"), began
    )
    return {line.get("reason", "taken") for line in lines}


def report(outcome: Outcome) -> dict[str, Any]:
    """The figures."""
    whole, pointer = np.array(outcome.publish_ms), np.array(outcome.pointer_ms)

    def spread(values: Any) -> dict[str, float]:
        p50, p99 = np.percentile(values, [50, 99])
        return {
            "p50": round(float(p50), 1),
            "p99": round(float(p99), 1),
            "max": round(float(values.max()), 1),
        }

    requests = sum(load.requests for load in outcome.loads)
    return {
        "releases": outcome.releases,
        "hostile": sum(outcome.refused.values()) + len(outcome.misnamed),
        "refused_by_name": outcome.refused,
        "not_refused_by_name": outcome.misnamed,
        "requests": requests,
        "requests_per_s": round(requests / max(load.seconds for load in outcome.loads)),
        "failed_requests": sum(len(load.failed) for load in outcome.loads),
        "failures": dict(Counter(text[:100] for load in outcome.loads for text in load.failed)),
        "answers_of_another_version": sum(len(load.mismatched) for load in outcome.loads),
        "versions_seen_by_a_client": max(load.versions for load in outcome.loads),
        "publish_to_every_worker_ms": spread(whole),
        "pointer_to_every_worker_ms": spread(pointer),
        "memory_mb": {kind: round(size, 1) for kind, size in outcome.memory_before.items()},
        "memory_growth_mb": {
            kind: round(outcome.memory_after[kind] - size, 2)
            for kind, size in outcome.memory_before.items()
        },
        "seconds": round(outcome.seconds, 1),
    }


def run(releases: int, warm_up: int, home: Path) -> Outcome:
    """The whole measurement in a fresh home folder."""
    publisher = Publisher(home)
    publisher.publish(0)
    with serving(home) as service:
        return storm(publisher, service, releases, warm_up)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", type=int, default=1000)
    parser.add_argument("--warm-up", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = report(run(chosen.releases, chosen.warm_up, Path(folder)))
    if chosen.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:30} {value}")


if __name__ == "__main__":
    main()
