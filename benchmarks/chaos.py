"""`python -m benchmarks.chaos [--rounds N] [--json]`: kill -9 while everything flows.

A real deployment (two workers, PostgreSQL, supervision) takes telemetry, patterns and decisions
over HTTP from clients that keep a ledger of what was acknowledged. Each round kills one of: a
worker, the worker that drains, the postmaster, the workers' parent, everything at once; then it
waits until all is well. In the end the ledger is held against the landing zone, PostgreSQL, and a
fresh service with one worker that decides the same events.
"""

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg

from benchmarks.deployment import KINDS, Deployment, wait_until
from drl_core.telemetry.landing import LandingZone

STEPS = 8
"""Windows of each decided episode."""
_PAUSE_S = 0.02
Key = tuple[str, str, int]


@dataclass
class Ledger:
    """What the clients know: the answer to each thing that they sent."""

    events: Counter[Key] = field(default_factory=Counter)
    """Acknowledged event -> how often it was sent."""
    patterns: set[Key] = field(default_factory=set)
    decisions: dict[Key, dict[str, Any]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)


@dataclass
class Outcome:
    """What was found in the end; every list is of identities and should be empty."""

    rounds: int = 0
    seconds: float = 0.0
    sent: dict[str, int] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    """By what was killed: until every part lived, a decision was answered, and a pattern that was
    sent after the kill was in PostgreSQL."""
    first_answer_s: dict[str, list[float]] = field(default_factory=dict)
    """By what was killed: until a decision was answered."""
    unexpected: list[str] = field(default_factory=list)
    lost_events: list[Key] = field(default_factory=list)
    doubled_events: list[Key] = field(default_factory=list)
    segments_in_two_batches: list[str] = field(default_factory=list)
    lost_patterns: list[Key] = field(default_factory=list)
    doubled_patterns: list[Key] = field(default_factory=list)
    lost_decisions: list[Key] = field(default_factory=list)
    doubled_decisions: list[Key] = field(default_factory=list)
    different_decisions: list[Key] = field(default_factory=list)

    def holds(self) -> bool:
        """Whether nothing was lost, doubled, different or unexpected."""
        return not any(getattr(self, name) for name in FAULTS)


FAULTS = tuple(one.name for one in dataclasses.fields(Outcome) if one.default_factory is list)
"""The lists of `Outcome`."""


class Clients:
    """Threads that send until told to stop, each thing again until it is acknowledged."""

    def __init__(self, url: str, seed: int = 0) -> None:
        self.ledger = Ledger()
        self._url = url
        self._stop = threading.Event()
        self._random = random.Random(seed)
        works = (self._telemetry, self._telemetry, self._patterns, self._decide, self._decide)
        self._threads = [
            threading.Thread(target=self._run, args=(work, f"{work.__name__[1:]}-{number}"))
            for number, work in enumerate(works)
        ]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, work: Any, name: str) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            try:
                work(client, name)
            except Exception as error:
                self.ledger.unexpected.append(f"{name}: {error!r}")

    def _post(self, client: httpx.Client, path: str, body: Any, good: int) -> tuple[Any, int]:
        """Send until acknowledged; the answer, None where it was refused, and how often sent."""
        for tries in itertools.count(1):
            content = body() if callable(body) else body
            kind = "application/x-ndjson" if callable(body) else "application/json"
            try:
                answer = client.post(path, content=content, headers={"Content-Type": kind})
            except httpx.TransportError as error:
                self.ledger.retries[type(error).__name__] += 1
            else:
                if answer.status_code == good:
                    return answer.json(), tries
                self.ledger.retries[str(answer.status_code)] += 1
                if answer.status_code != 503 or "retry-after" not in answer.headers:
                    self.ledger.unexpected.append(f"{path}: {answer.status_code} {answer.text}")
                    return None, tries
            time.sleep(0.05)
        raise AssertionError

    def _telemetry(self, client: httpx.Client, name: str) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            count = (1, 10, 30)[number % 3]
            events = [event(name, f"{number}", step) for step in range(count)]
            lines = [json.dumps(event).encode() + b"\n" for event in events]
            bodies = (lines[0], json.dumps(events).encode(), lambda lines=lines: iter(lines))
            answer, tries = self._post(client, "/v1/telemetry", bodies[number % 3], 202)
            if answer is None:
                continue
            if answer["accepted"] != count:
                self.ledger.unexpected.append(f"telemetry: {answer}")
            self.ledger.events.update({(name, str(number), s): tries for s in range(count)})
            time.sleep(_PAUSE_S)

    def _patterns(self, client: httpx.Client, name: str) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            count = (1, 5)[number % 2]
            body = [pattern(name, f"{number}", step) for step in range(count)]
            if self._post(client, "/v1/patterns", json.dumps(body), 202)[0]:
                self.ledger.patterns |= {(name, str(number), step) for step in range(count)}
            time.sleep(_PAUSE_S)

    def _decide(self, client: httpx.Client, name: str) -> None:
        for number in itertools.count():
            for step in range(STEPS):
                if self._stop.is_set():
                    return
                body = json.dumps(event(name, f"{number}", step))
                made, _ = self._post(client, "/v1/decisions", body, 200)
                if made is None:
                    break
                self.ledger.decisions[name, str(number), step] = made
                time.sleep(_PAUSE_S)


def event(sandbox: str, episode: str, step: int) -> dict[str, Any]:
    """An event as it is sent; its numbers follow from its place."""
    size = 1 + (hash((len(sandbox), int(episode), step)) % 1000)
    return {
        "sandbox_id": sandbox,
        "episode_id": episode,
        "step": step,
        "syscall_count": size,
        "file_write_count": size % 17,
        "bytes_sent": size * 100,
        "cpu_usage": size % 100,
    }


def pattern(sandbox: str, episode: str, step: int) -> dict[str, Any]:
    """A pattern as it is sent."""
    return {
        "sandbox_id": sandbox,
        "episode_id": episode,
        "step": step,
        "model_version": "v1",
        "features": [0.1] * 30,
        "action": 3,
        "reward": 8.5,
        "attack_type": "ransomware",
        "confidence": 0.97,
        "time": "2026-11-22T12:00:00Z",
        "metadata": {"process": f"{episode}.exe"},
    }


def recover(deployment: Deployment, number: int, began: float) -> tuple[float, float]:
    """Wait until all is well; seconds from the kill to the first decision, and to all."""
    probe, first = f"probe-{number}", 0.0

    def answered() -> bool:
        body = event("probe", str(number), 0)
        try:
            answer = httpx.post(f"{deployment.url}/v1/decisions", json=body, timeout=30)
        except httpx.TransportError:
            return False
        return answer.status_code == 200

    def accepted() -> bool:
        body = pattern("probe", probe, 0)
        try:
            return httpx.post(f"{deployment.url}/v1/patterns", json=body).status_code == 202
        except httpx.TransportError:
            return False

    wait_until(answered)
    first = time.monotonic() - began
    wait_until(accepted)
    wait_until(deployment.whole)
    wait_until(lambda: _stored(deployment, probe))
    return first, time.monotonic() - began


def _stored(deployment: Deployment, episode: str) -> bool:
    try:
        with deployment.connect() as connection:
            query = "SELECT 1 FROM attack_patterns WHERE sandbox_id = 'probe' AND episode_id = %s"
            return connection.execute(query, [episode]).fetchone() is not None
    except psycopg.OperationalError:
        return False


def run(home: Path, fresh: Path, rounds: int, *, flow_s: float = 0.5, seed: int = 0) -> Outcome:
    """Break a deployment `rounds` times, then hold the ledger against what is there.

    Args:
        home: of the service, with a release.
        fresh: another home with the same release.
        rounds: kills, of each kind in turn.
        flow_s: of undisturbed load before each kill, at most.
        seed: of the moments of the kills.
    """
    outcome = Outcome(rounds=rounds)
    chance, began = random.Random(seed), time.monotonic()
    with Deployment(home) as deployment:
        with Clients(deployment.url, seed) as clients:
            for number in range(rounds):
                kind = KINDS[number % len(KINDS)]
                time.sleep(chance.uniform(0, flow_s))
                killed = time.monotonic()
                deployment.kill(kind)
                first, well = recover(deployment, number, killed)
                outcome.first_answer_s.setdefault(kind, []).append(first)
                outcome.recovery_s.setdefault(kind, []).append(well)
                print(f"round {number + 1}: {kind}, well after {well:.2f} s", flush=True)
        ledger = clients.ledger
        outcome.seconds = time.monotonic() - began
        outcome.unexpected = ledger.unexpected
        outcome.retries = dict(ledger.retries)
        outcome.sent = {
            "events": len(ledger.events),
            "patterns": len(ledger.patterns),
            "decisions": len(ledger.decisions),
        }
        check_database(deployment, ledger, outcome)
    check_landing(home, ledger, outcome)
    outcome.different_decisions = compare(fresh, ledger.decisions)
    return outcome


def check_database(deployment: Deployment, ledger: Ledger, outcome: Outcome) -> None:
    """Every acknowledged pattern and every answered decision is there, once."""
    wait_until(lambda: _is_there(deployment, ledger))
    with deployment.connect() as connection:
        stored = Counter(_rows(connection, "attack_patterns"))
        outcome.lost_patterns = sorted(ledger.patterns - stored.keys())
        outcome.doubled_patterns = [key for key, count in stored.items() if count > 1]
        logged = Counter(_rows(connection, "decisions"))
        outcome.doubled_decisions = [key for key, count in logged.items() if count > 1]
        ids = {str(row[0]) for row in connection.execute("SELECT decision_id FROM decisions")}
        outcome.lost_decisions = [
            key for key, made in ledger.decisions.items() if made["decision_id"] not in ids
        ]


def _is_there(deployment: Deployment, ledger: Ledger) -> bool:
    """Whether as many decisions as were answered are logged, or nothing moves any more."""
    with deployment.connect() as connection:
        counts = []
        for _ in range(2):
            found = connection.execute("SELECT count(*) FROM decisions").fetchone()
            counts.append(found[0] if found else 0)
            time.sleep(1.0)
    return counts[0] == counts[1]


def _rows(connection: Any, table: str) -> Iterator[Key]:
    query = f"SELECT sandbox_id, episode_id, step FROM {table}"  # noqa: S608 - our own names
    yield from connection.execute(query)


def check_landing(home: Path, ledger: Ledger, outcome: Outcome) -> None:
    """Every acknowledged event is in exactly one batch, and no segment in two."""
    zone = LandingZone(home / "landing")
    while zone.seal():
        pass
    segments: Counter[str] = Counter()
    landed: Counter[Key] = Counter()
    for key in zone.keys():  # noqa: SIM118 - no mapping
        segments.update(segment.name for segment in zone.batch(key).segments)
        for part in zone.read(key):
            landed.update((e.sandbox_id, str(e.episode_id), e.step) for e in part)
    outcome.segments_in_two_batches = [name for name, count in segments.items() if count > 1]
    outcome.lost_events = sorted(ledger.events.keys() - landed.keys())
    outcome.doubled_events = [key for key, tries in ledger.events.items() if landed[key] > tries]


def compare(home: Path, decided: dict[Key, dict[str, Any]]) -> list[Key]:
    """Decide the same events again by one worker that nobody kills; keys that differ."""
    differing = []
    with Deployment(home, workers=1) as deployment, httpx.Client(timeout=30) as client:
        for (sandbox, episode, step), made in sorted(decided.items()):
            body = event(sandbox, episode, step)
            again = (
                client.post(f"{deployment.url}/v1/decisions", json=body).raise_for_status().json()
            )
            same = again["action"] == made["action"] and np.allclose(
                again["q_values"], made["q_values"], atol=1e-6
            )
            if not same:
                differing.append((sandbox, episode, step))
    return differing


def main() -> None:
    """Run and print."""
    from benchmarks.release_variants import Publisher

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path, help="where to keep the outcome")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        homes = [Path(name, part) for part in ("home", "fresh")]
        for home in homes:
            Publisher(home).publish(1)
        outcome = run(homes[0], homes[1], options.rounds, flow_s=2.0)
    if options.json:
        options.json.write_text(json.dumps(dataclasses.asdict(outcome), indent=1))
    print(f"\n{outcome.rounds} rounds in {outcome.seconds:.0f} s; sent {outcome.sent}")
    print(f"sent again because of {outcome.retries}\n")
    print(f"{'killed':<10}{'rounds':>8}{'first decision, s: median, most':>34}{'all well, s':>20}")
    for kind, well in outcome.recovery_s.items():
        first = outcome.first_answer_s[kind]
        figures = f"{statistics.median(first):.2f}, {max(first):.2f}"
        print(
            f"{kind:<10}{len(well):>8}{figures:>34}"
            f"{f'{statistics.median(well):.2f}, {max(well):.2f}':>20}"
        )
    for name in FAULTS:
        found = getattr(outcome, name)
        print(f"{name.replace('_', ' '):<28}{len(found):>6}  {found[:3] or ''}")
    raise SystemExit(not outcome.holds())


if __name__ == "__main__":
    main()
