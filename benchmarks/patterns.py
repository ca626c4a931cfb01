"""`python -m benchmarks.patterns [--patterns N]`: storing and finding attack patterns, in figures.

An embedded PostgreSQL of its own (durable, as deployed) is filled with N patterns in clusters of
attack types. Then, one after the other: patterns are sealed, queued and acknowledged as `POST
/v1/patterns` does it, by callers at once; each is watched until it is in PostgreSQL; pages are read
by type and time; neighbours are searched, and compared with exact search over all N; and the
database is stopped while rows gather, then started, for the rate at which they drain. Printed are
the figures beside what they are to reach.
"""

import argparse
import asyncio
import datetime as dt
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import psycopg

from drl_cli.local.embedded_postgres import EmbeddedPostgres
from drl_core.migrations import migrate
from drl_core.settings import Settings
from drl_core.storage import patterns
from drl_core.storage.encryption import Keyring
from drl_core.storage.patterns import AttackPattern
from drl_serving.background import OUTBOX_STORES
from drl_serving.patterns.search import Filter, PatternStore
from drl_serving.storage.outbox_storage import Storage

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
TYPES = ("ransomware", "beacon", "worm", "miner", "wiper", "keylogger", "dropper", "rootkit")
CALLERS = 16
WRITES = 2000
WATCHED = 100
READS = 300
OUTAGE = 5000
"""Rows that gather while the database is away."""

Row = tuple[str, str, str]
"""What was measured, the figure, what it is to reach."""


def made(count: int, version: str, seed: int) -> list[AttackPattern]:
    """Patterns whose features lie in clusters, eight of each attack type."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).random((len(TYPES) * 8, 30))
    cluster = rng.integers(0, len(centres), count)
    features = np.clip(centres[cluster] + rng.normal(0, 0.05, (count, 30)), 0, 1)
    return [
        AttackPattern(
            sandbox_id=f"sandbox-{n % 50}",
            episode_id=f"episode-{n}",
            step=int(n % 60),
            model_version=version,
            features=features[n].astype(np.float32).astype(float).tolist(),
            action=int(2 + n % 3),
            reward=float(rng.normal()),
            attack_type=TYPES[cluster[n] % len(TYPES)],
            confidence=float(rng.random()),
            time=START + dt.timedelta(seconds=int(rng.integers(0, 90 * 86_400))),
            metadata={"action": "quarantine_file", "session_id": f"session-{n % 400}"},
        )
        for n in range(count)
    ]


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds of one call."""
    begun = time.perf_counter()
    await call()
    return (time.perf_counter() - begun) * 1000


def percentiles(milliseconds: Sequence[float]) -> str:
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return f"{p50:.1f} / {p99:.1f} ms"


async def write(storage: Storage, new: list[AttackPattern]) -> list[float]:
    """Milliseconds until each pattern is acknowledged, `CALLERS` of them at once."""
    rows = iter(new)
    took: list[float] = []

    async def one(pattern: AttackPattern) -> None:
        sealed = patterns.seal(pattern, storage.keyring)
        await storage.submit([(patterns.TOPIC, *patterns.queue(sealed))])

    async def caller() -> None:
        for pattern in rows:
            took.append(await timed(lambda pattern=pattern: one(pattern)))  # type: ignore[misc]

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return took


async def drained(storage: Storage) -> None:
    """Return when nothing waits."""
    while await asyncio.to_thread(storage.outbox.depth):
        await asyncio.sleep(0.005)


async def write_through(storage: Storage, new: list[AttackPattern], url: str) -> list[float]:
    """Milliseconds from the call until PostgreSQL shows the pattern, one by one."""
    took = []
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        query = "SELECT 1 FROM attack_patterns WHERE model_version = %s AND episode_id = %s"
        for pattern in new:
            begun = time.perf_counter()
            sealed = patterns.seal(pattern, storage.keyring)
            await storage.submit([(patterns.TOPIC, *patterns.queue(sealed))])
            while True:
                cursor = await connection.execute(
                    query, [pattern.model_version, pattern.episode_id]
                )
                if await cursor.fetchone():
                    break
                await asyncio.sleep(0.001)
            took.append((time.perf_counter() - begun) * 1000)
    return took


async def read(store: PatternStore) -> dict[str, list[float]]:
    """Milliseconds of pages of 50 by different filters, and of the page after the first."""
    rng = np.random.default_rng(1)
    took: dict[str, list[float]] = {"type and time": [], "next page": [], "all filters": []}
    for _ in range(READS):
        since = START + dt.timedelta(days=int(rng.integers(0, 80)))
        wanted = Filter(
            attack_type=TYPES[rng.integers(len(TYPES))],
            since=since,
            until=since + dt.timedelta(days=7),
        )
        took["type and time"].append(await timed(lambda wanted=wanted: store.search(wanted)))  # type: ignore[misc]
        first = await store.search(wanted)
        took["next page"].append(
            await timed(lambda w=wanted, c=first.next: store.search(w, cursor=c))  # type: ignore[misc]
        )
        every = Filter(
            attack_type=wanted.attack_type,
            since=since,
            sandbox_id=f"sandbox-{rng.integers(50)}",
            action=3,
            min_confidence=0.9,
        )
        took["all filters"].append(await timed(lambda every=every: store.search(every)))  # type: ignore[misc]
    return took


async def nearest(
    store: PatternStore, stored: list[AttackPattern]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of the 10 nearest, of all and of one type, and their recall."""
    matrix = np.array([p.features for p in stored], dtype=np.float32)
    kinds = np.array([p.attack_type for p in stored])
    squares = (matrix**2).sum(axis=1)
    queries = made(READS, "query", 9)
    took: dict[str, list[float]] = {"nearest": [], "nearest of a type": []}
    recall: dict[str, list[float]] = {name: [] for name in took}
    for query in queries:
        vector = np.array(query.features, dtype=np.float32)
        distance = np.sqrt(np.maximum(squares - 2 * matrix @ vector + vector @ vector, 0))
        for name, wanted in (
            ("nearest", Filter()),
            ("nearest of a type", Filter(attack_type=query.attack_type)),
        ):
            begun = time.perf_counter()
            page = await store.nearest(query.features, wanted, limit=10)
            took[name].append((time.perf_counter() - begun) * 1000)
            mine = distance if wanted.attack_type is None else distance[kinds == query.attack_type]
            tenth = np.partition(mine, 9)[9]
            recall[name].append(sum(d <= tenth + 1e-4 for _, d in page.items) / 10)
    return took, {name: statistics.mean(values) for name, values in recall.items()}


async def measure(folder: Path, server: EmbeddedPostgres, url: str, count: int) -> list[Row]:
    """Every figure, with what it is to reach."""
    storage = Storage(Settings(home=str(folder), database_url=url), OUTBOX_STORES)
    stored = made(count, "stored", 1)
    begun = time.perf_counter()
    await asyncio.to_thread(patterns.upsert, url, stored, Keyring(folder / "keys"), 60.0)
    rows: list[Row] = [(f"bulk store of {count:,}", f"{time.perf_counter() - begun:.1f} s", "")]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE attack_patterns")
    await storage.open()
    assert storage.database is not None
    store = PatternStore(storage.database, storage.keyring)
    await store.search()
    for name, took in (await read(store)).items():
        rows.append((f"50 by {name}, p50 / p99", percentiles(took), "< 50 ms"))
    times, recalls = await nearest(store, stored)
    for name, took in times.items():
        rows.append((f"10 {name}, p50 / p99", percentiles(took), "< 50 ms"))
        rows.append((f"10 {name}, recall", f"{recalls[name]:.4f}", ""))
    begun = time.perf_counter()
    acknowledged = await write(storage, made(WRITES, "new", 2))
    rate = WRITES / (time.perf_counter() - begun)
    rows.append((f"write acknowledged, {CALLERS} callers", percentiles(acknowledged), "< 100 ms"))
    rows.append(("write rate", f"{rate:,.0f} /s", ""))
    await drained(storage)
    through = await write_through(storage, made(WATCHED, "through", 3), url)
    rows.append(("write to visible in PostgreSQL", percentiles(through), "< 100 ms"))
    server.stop()
    kept = await write(storage, made(OUTAGE, "outage", 4))
    rows.append(("write acknowledged, database away", percentiles(kept), "< 100 ms"))
    assert server.start() == url
    begun = time.perf_counter()
    await drained(storage)
    rows.append((f"drain of {OUTAGE:,}", f"{OUTAGE / (time.perf_counter() - begun):,.0f} /s", ""))
    await storage.close()
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT count(*) FROM attack_patterns").fetchone()
    expected = count + WRITES + WATCHED + OUTAGE
    rows.append(("stored in the end", f"{found[0] if found else 0:,}", f"{expected:,}"))
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patterns", type=int, default=100_000)
    count = parser.parse_args().patterns
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = EmbeddedPostgres(folder / "postgres", port=_free_port())
        url = server.start()
        try:
            migrate(url)
            rows = asyncio.run(measure(folder, server, url, count))
        finally:
            server.stop()
    print(f"{count:,} patterns; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    for what, figure, reach in rows:
        print(f"{what:<42} {figure:>22}  {reach}")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
