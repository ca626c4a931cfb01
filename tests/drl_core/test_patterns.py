"""Attack patterns in a real PostgreSQL with pgvector."""

import asyncio
import datetime as dt
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_cli.postgres import EmbeddedPostgres
from drl_core.migrations import migrate
from drl_core.patterns import AttackPattern, DatabaseUnavailable, PatternStore, upsert

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
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


def ask(url: str, question: Callable[[PatternStore], Awaitable[T]]) -> T:
    async def run() -> T:
        async with await PatternStore.open(url) as store:
            return await question(store)

    return asyncio.run(run())


def clear(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("TRUNCATE attack_patterns")


def test_a_stored_pattern_comes_back_unchanged(postgres_url: str) -> None:
    clear(postgres_url)
    stored = [pattern(1), pattern(2, artifact_sha256=None, metadata={})]
    assert upsert(postgres_url, stored) == 2
    assert ask(postgres_url, lambda store: store.search()) == stored[::-1]


def test_storing_the_same_patterns_twice_changes_no_row(postgres_url: str) -> None:
    clear(postgres_url)
    stored = [pattern(number) for number in range(50)]
    state = "SELECT array_agg((xmin, p.*)::text ORDER BY episode_id) FROM attack_patterns p"
    assert upsert(postgres_url, stored) == 50
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        before = connection.execute(state).fetchone()
        assert upsert(postgres_url, iter(stored)) == 50
        assert connection.execute(state).fetchone() == before


def test_a_later_pattern_of_the_same_identity_replaces_the_earlier(postgres_url: str) -> None:
    clear(postgres_url)
    upsert(postgres_url, [pattern(1, reward=-1.0)])
    assert upsert(postgres_url, [pattern(1, reward=2.0), pattern(1, reward=3.0)]) == 1
    assert [p.reward for p in ask(postgres_url, lambda store: store.search())] == [3.0]


def test_another_model_version_is_another_pattern(postgres_url: str) -> None:
    clear(postgres_url)
    assert upsert(postgres_url, [pattern(1), pattern(1, model_version="v2")]) == 2
    assert len(ask(postgres_url, lambda store: store.search())) == 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"features": [0.5] * 29}, "features"),
        ({"action": 5}, "action"),
        ({"confidence": 1.5}, "confidence"),
        ({"time": dt.datetime(2026, 1, 1)}, "time"),
        ({"artifact_sha256": "xyz"}, "artifact_sha256"),
        ({"step": -1}, "step"),
    ],
)
def test_an_invalid_pattern_is_refused_by_field_and_nothing_is_stored(
    postgres_url: str, changes: dict[str, Any], field: str
) -> None:
    clear(postgres_url)
    with pytest.raises(msgspec.ValidationError, match=field):
        upsert(postgres_url, [pattern(1), pattern(2, **changes)])
    assert ask(postgres_url, lambda store: store.search()) == []


def test_search_filters_by_type_and_time_and_pages(postgres_url: str) -> None:
    clear(postgres_url)
    stored = [pattern(number) for number in range(40)]
    upsert(postgres_url, stored)
    since, until = START + dt.timedelta(seconds=10), START + dt.timedelta(seconds=30)
    expected = [p for p in stored if p.attack_type == "beacon" and since <= p.time < until][::-1]
    found = ask(
        postgres_url,
        lambda store: store.search(attack_type="beacon", since=since, until=until),
    )
    assert found == expected
    page = ask(postgres_url, lambda store: store.search(limit=5, offset=5))
    assert page == stored[::-1][5:10]


@pytest.mark.parametrize("arguments", [{"limit": 0}, {"limit": 1001}, {"offset": -1}])
def test_search_refuses_a_page_outside_its_bounds(
    postgres_url: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ask(postgres_url, lambda store: store.search(**arguments))


def test_nearest_refuses_what_is_no_feature_vector(postgres_url: str) -> None:
    for features in ([0.5] * 29, [float("nan")] * 30):
        with pytest.raises(ValueError, match="features"):
            ask(postgres_url, lambda store, wrong=features: store.nearest(wrong))  # type: ignore[misc]


def test_nearest_is_in_the_exact_order_of_distance(postgres_url: str) -> None:
    clear(postgres_url)
    stored = [pattern(number) for number in range(200)]
    upsert(postgres_url, stored)
    matrix = np.array([p.features for p in stored])

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.floats(0, 1, width=32), min_size=30, max_size=30), st.integers(1, 40))
    def holds(query: list[float], limit: int) -> None:
        exact = np.sort(np.linalg.norm(matrix - np.array(query), axis=1))[:limit]
        found = ask(postgres_url, lambda store: store.nearest(query, limit))
        assert [d for _, d in found] == pytest.approx(exact, abs=1e-5)
        for near, distance in found:
            true = np.linalg.norm(np.array(near.features) - np.array(query))
            assert distance == pytest.approx(true, abs=1e-5)

    holds()


def test_the_vector_index_answers_as_many_as_asked(postgres_url: str) -> None:
    clear(postgres_url)
    upsert(postgres_url, [pattern(number) for number in range(2000)])
    with psycopg.connect(postgres_url) as connection:
        connection.execute("ANALYZE attack_patterns")
    found = ask(postgres_url, lambda store: store.nearest([0.5] * 30, 300))
    distances = [distance for _, distance in found]
    assert len(found) == 300
    assert distances == sorted(distances)


def test_writers_at_once_lose_nothing_and_keep_the_vector_index(postgres_url: str) -> None:
    clear(postgres_url)
    shares = [[pattern(n) for n in range(start, start + 1500)] for start in (0, 500, 1000, 1500)]
    with ThreadPoolExecutor(4) as pool:
        stored = list(pool.map(lambda share: upsert(postgres_url, share), shares))
    assert stored == [1500] * 4
    indexes = "SELECT count(*) FROM pg_indexes WHERE tablename = 'attack_patterns'"
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM attack_patterns").fetchone() == (3000,)
        assert connection.execute(indexes).fetchone() == (4,)


def test_a_search_that_is_kept_waiting_ends_within_its_bound(postgres_url: str) -> None:
    async def run() -> None:
        async with await PatternStore.open(postgres_url, wait_s=0.3) as store:
            with psycopg.connect(postgres_url) as connection:
                connection.execute("LOCK TABLE attack_patterns")
                with pytest.raises(DatabaseUnavailable, match="timeout"):
                    await store.search()
            await store.search()

    asyncio.run(run())


def test_a_database_that_is_away_at_start_is_an_error_until_it_comes_back(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", durable=False)
    url = server.start()
    migrate(url)
    upsert(url, [pattern(1)])
    port = psycopg.conninfo.conninfo_to_dict(url)["port"]
    server.stop()

    async def run() -> None:
        async with await PatternStore.open(url, wait_s=0.5) as store:
            with pytest.raises(DatabaseUnavailable):
                await store.search()
            again = EmbeddedPostgres(tmp_path / "postgres", durable=False, port=int(str(port)))
            with again:
                assert await _soon(store) == [pattern(1)]
            with pytest.raises(DatabaseUnavailable):
                await store.search()
            with EmbeddedPostgres(tmp_path / "postgres", durable=False, port=int(str(port))):
                assert await _soon(store) == [pattern(1)]

    async def _soon(store: PatternStore) -> list[AttackPattern]:
        for _ in range(60):
            try:
                return await store.search()
            except DatabaseUnavailable:
                await asyncio.sleep(0.1)
        raise AssertionError("the store did not find the database again")

    asyncio.run(run())
    with pytest.raises(DatabaseUnavailable):
        upsert(url, [pattern(2)], wait_s=0.3)


def test_importing_the_patterns_brings_no_sqlalchemy() -> None:
    code = "import drl_core.patterns, drl_core.progress, sys; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
