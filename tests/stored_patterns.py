"""Patterns for tests, and a way to store and to ask for them, with keys of their own."""

import asyncio
import contextlib
import datetime as dt
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psycopg

from drl_core.storage import patterns
from drl_core.storage.database import ReadPool
from drl_core.storage.encryption import Keyring
from drl_core.storage.patterns import AttackPattern
from drl_serving.patterns.search import Filter, PatternStore

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
FOLDER = tempfile.TemporaryDirectory(prefix="drl-keys-")
KEYS = Keyring(Path(FOLDER.name))
T = TypeVar("T")


def pattern(number: int, **changes: Any) -> AttackPattern:
    rng = np.random.default_rng(number)
    values: dict[str, Any] = {
        "sandbox_id": "sandbox-1",
        "episode_id": f"episode-{number}",
        "step": number % 7,
        "model_version": "v1",
        "features": rng.random(30, dtype=np.float32).astype(float).tolist(),
        "action": number % 5,
        "reward": float(rng.normal()),
        "attack_type": "ransomware" if number % 3 else "beacon",
        "confidence": float(rng.random()),
        "time": START + dt.timedelta(seconds=number),
        "artifact_sha256": f"{number:064x}",
        "metadata": {"number": number, "tags": ["a", None, 1.5]},
    }
    return AttackPattern(**{**values, **changes})


def upsert(url: str, found: Iterable[AttackPattern], **options: Any) -> int:
    return patterns.upsert(url, found, KEYS, **options)


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[PatternStore]:
    pool = ReadPool(url, **options)
    await pool.open()
    try:
        yield PatternStore(pool, KEYS)
    finally:
        await pool.close()


def ask(url: str, question: Callable[[PatternStore], Awaitable[T]]) -> T:
    async def run() -> T:
        async with opened(url) as store:
            return await question(store)

    return asyncio.run(run())


def stored_in(url: str, **wanted: Any) -> list[AttackPattern]:
    return ask(url, lambda store: store.search(Filter(**wanted), limit=1000)).items


def clear(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("TRUNCATE attack_patterns")
