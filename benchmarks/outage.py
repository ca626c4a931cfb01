"""`python -m benchmarks.outage [--seconds N] [--json PATH]`: PostgreSQL is away, under load.

Decisions, telemetry, patterns and searches come in at a fixed rate, whatever the answers take (open
loop). For the first half of the outage PostgreSQL's processes are stopped where they are, so that
connections stay open and nothing answers; for the second half they are killed, so that connections
are refused. Printed are the answers' times before, during and after, how deep the outbox became,
how long it took to drain, and whether it drained in order and whole.
"""

import argparse
import asyncio
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np

from benchmarks.chaos import event, pattern
from benchmarks.deployment import Deployment, wait_until
from drl_core.storage.outbox import Outbox
from drl_core.telemetry.landing import LandingZone

RATES = {"decisions": 50.0, "telemetry": 30.0, "patterns": 20.0, "searches": 2.0}
"""Requests a second."""
EPISODES = 200
"""Decided in turn, so that a step is answered long before the next one of its episode is sent."""


@dataclass
class Sent:
    """One pattern: when it was sent and acknowledged, in seconds."""

    number: int
    sent: float
    acknowledged: float


@dataclass
class Outcome:
    """What was seen, by phase: before, frozen, gone, after."""

    times_ms: dict[str, list[float]] = field(default_factory=dict)
    """What was sent, and the phase -> milliseconds of each answer, from when it was due."""
    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    deepest: int = 0
    drained_s: float = 0.0
    """From the return of PostgreSQL until what had waited then was stored."""
    patterns: list[Sent] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    out_of_order: int = 0
    set_aside: int = 0


class Load:
    """Sends at fixed rates and keeps what came of it."""

    def __init__(self, url: str, outcome: Outcome) -> None:
        self._url = url
        self._outcome = outcome
        self.phase = "before"
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Send until stopped, then wait for the last answers."""
        connections = aiohttp.TCPConnector(limit=0)
        patience = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(
            self._url, connector=connections, timeout=patience
        ) as session:
            await asyncio.gather(*(self._stream(session, what) for what in RATES))

    def stop(self) -> None:
        """Let `run` return."""
        self._stop.set()

    async def _stream(self, session: aiohttp.ClientSession, what: str) -> None:
        began, tasks = time.perf_counter(), set[asyncio.Task[None]]()
        for number in itertools.count():
            due = began + number / RATES[what]
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if self._stop.is_set():
                break
            task = asyncio.create_task(self._send(session, what, number, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _send(
        self, session: aiohttp.ClientSession, what: str, number: int, due: float
    ) -> None:
        outcome = self._outcome
        row = f"{what} {self.phase}"
        statuses = outcome.statuses.setdefault(row, Counter())
        began = time.monotonic()
        try:
            async with _request(session, what, number) as answer:
                body = await answer.json(content_type=None)
                status = answer.status
        except (aiohttp.ClientError, TimeoutError) as error:
            statuses[type(error).__name__] += 1
            return
        statuses[str(status)] += 1
        outcome.times_ms.setdefault(row, []).append((time.perf_counter() - due) * 1000)
        match what, status:
            case "decisions", 200:
                outcome.decisions.append(body["decision_id"])
            case "telemetry", 202:
                outcome.events.append(number)
            case "patterns", 202:
                outcome.patterns.append(Sent(number, began, time.monotonic()))


def _request(session: aiohttp.ClientSession, what: str, number: int) -> Any:
    episode, step = str(number % EPISODES), number // EPISODES
    match what:
        case "decisions":
            return session.post("/v1/decisions", json=event("decided", episode, step))
        case "telemetry":
            return session.post("/v1/telemetry", json=event("landed", "0", number))
        case "patterns":
            return session.post("/v1/patterns", json=pattern("ordered", "0", number))
        case _:
            return session.get("/v1/patterns?limit=10")


async def measure(home: Path, outage_s: float, calm_s: float) -> Outcome:
    """Run through the phases.

    Args:
        home: with a release.
        outage_s: of the outage.
        calm_s: before it, and after the drain.
    """
    outcome = Outcome()
    # measured, not shed: a step that was shed would be missing from its episode
    made = Deployment(home, DRL_SERVING__MAX_IN_FLIGHT="1000")
    deployment = await asyncio.to_thread(made.__enter__)
    try:
        outbox = Outbox(home / "state" / "outbox.sqlite")
        load = Load(deployment.url, outcome)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(calm_s)
        for phase, act in (
            ("frozen", deployment.freeze_database),
            ("gone", deployment.hold_database),
        ):
            load.phase = phase
            await asyncio.to_thread(act)
            await asyncio.sleep(outage_s / 2)
        outcome.deepest = await asyncio.to_thread(outbox.depth)
        waiting = await asyncio.to_thread(outbox.peek, outcome.deepest)
        load.phase = "after"
        began = time.monotonic()
        await asyncio.to_thread(deployment.release_database)
        last = waiting[-1].sequence
        while (first := await asyncio.to_thread(outbox.peek, 1)) and first[0].sequence <= last:
            await asyncio.sleep(0.05)
        outcome.drained_s = time.monotonic() - began
        await asyncio.sleep(calm_s)
        load.stop()
        await running
        await asyncio.to_thread(check, deployment, home, outcome)
    finally:
        await asyncio.to_thread(deployment.__exit__, None, None, None)
    return outcome


def check(deployment: Deployment, home: Path, outcome: Outcome) -> None:
    """Hold what was acknowledged against PostgreSQL and the landing zone."""
    outbox = Outbox(home / "state" / "outbox.sqlite")
    time.sleep(1.0)  # the last decisions go from the journal to the outbox
    wait_until(lambda: outbox.depth() == 0)
    outcome.set_aside = outbox.dead_letter_count()
    with deployment.connect() as connection:
        stored = dict(
            connection.execute(
                "SELECT step, xmin::text::bigint FROM attack_patterns WHERE sandbox_id = 'ordered'"
            ).fetchall()
        )
        found = connection.execute("SELECT decision_id FROM decisions").fetchall()
    logged = {str(row[0]) for row in found}
    zone = LandingZone(home / "landing")
    while zone.seal():
        pass
    landed = {e.step for e in _landed(zone) if e.sandbox_id == "landed"}
    outcome.lost = {
        "patterns": len({one.number for one in outcome.patterns} - stored.keys()),
        "decisions": len(set(outcome.decisions) - logged),
        "events": len(set(outcome.events) - landed),
    }
    outcome.out_of_order = misplaced(outcome.patterns, stored)


def _landed(zone: LandingZone) -> Iterator[Any]:
    for key in zone.keys():  # noqa: SIM118 - no mapping
        for part in zone.read(key):
            yield from part


def misplaced(patterns: list[Sent], transactions: dict[int, int]) -> int:
    """Patterns that were stored before one that had been acknowledged when they were sent.

    Args:
        patterns: what was acknowledged.
        transactions: pattern -> number of the transaction that stored it; numbers rise.
    """
    earlier = sorted(patterns, key=lambda one: one.acknowledged)
    position, latest, wrong = 0, 0, 0
    for one in sorted(patterns, key=lambda one: one.sent):
        while earlier[position].acknowledged < one.sent:
            latest = max(latest, transactions.get(earlier[position].number, 0))
            position += 1
        wrong += transactions.get(one.number, 0) < latest
    return wrong


def main() -> None:
    """Measure and print."""
    from benchmarks.release_variants import Publisher

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--calm", type=float, default=60)
    parser.add_argument("--json", type=Path, help="where to keep the outcome")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        Publisher(home).publish(1)
        outcome = asyncio.run(measure(home, options.seconds, options.calm))
    if options.json:
        options.json.write_bytes(msgspec.json.encode(outcome))
    print(f"{'':<18}{'answers':>9}{'p50 ms':>9}{'p99 ms':>9}{'most ms':>9}  statuses")
    for row in sorted(outcome.times_ms):
        took = np.array(outcome.times_ms[row])
        p50, p99 = np.percentile(took, (50, 99))
        print(
            f"{row:<18}{len(took):>9}{p50:>9.1f}{p99:>9.1f}{took.max():>9.1f}"
            f"  {dict(outcome.statuses[row])}"
        )
    print(f"\noutbox at its deepest: {outcome.deepest:,} rows, drained {outcome.drained_s:.1f} s")
    print(f"after PostgreSQL was let go; lost {outcome.lost}, out of order {outcome.out_of_order},")
    print(f"set aside {outcome.set_aside}")
    raise SystemExit(bool(any(outcome.lost.values()) or outcome.out_of_order or outcome.set_aside))


if __name__ == "__main__":
    main()
