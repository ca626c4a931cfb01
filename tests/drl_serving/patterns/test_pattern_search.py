"""Finding attack patterns in a real PostgreSQL with pgvector."""

import asyncio
import datetime as dt
from pathlib import Path

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_patterns import START, ask, clear, opened, pattern, upsert

from drl_core.migrations import migrate
from drl_core.storage.database import DatabaseUnavailable
from drl_core.storage.patterns import AttackPattern
from drl_serving.http.cursor import CursorError
from drl_serving.patterns.search import Filter, PatternStore
from tests.postgres import FastPostgres


@pytest.fixture
def forty(postgres_url: str) -> list[AttackPattern]:
    """Forty stored patterns, newest first; some at one time, of two sandboxes."""
    stored = [
        pattern(n, sandbox_id=f"sandbox-{n % 2 + 1}", time=START + dt.timedelta(seconds=n // 3))
        for n in range(40)
    ]
    clear(postgres_url)
    upsert(postgres_url, stored)
    key = [(p.time, p.sandbox_id, p.episode_id, p.step, p.model_version) for p in stored]
    return [stored[at] for at in sorted(range(40), key=key.__getitem__, reverse=True)]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.none() | st.sampled_from(["beacon", "ransomware", "nothing"]),
    st.none() | st.integers(0, 40),
    st.none() | st.integers(0, 40),
    st.none() | st.sampled_from(["sandbox-1", "sandbox-2"]),
    st.none() | st.integers(0, 4),
    st.none() | st.floats(0, 1),
    st.integers(1, 15),
)
def test_search_by_any_filters_gives_each_pattern_once_newest_first(
    forty: list[AttackPattern],
    postgres_url: str,
    attack_type: str | None,
    since: int | None,
    until: int | None,
    sandbox_id: str | None,
    action: int | None,
    min_confidence: float | None,
    limit: int,
) -> None:
    wanted = Filter(
        attack_type=attack_type,
        since=None if since is None else START + dt.timedelta(seconds=since),
        until=None if until is None else START + dt.timedelta(seconds=until),
        sandbox_id=sandbox_id,
        action=action,
        min_confidence=min_confidence,
    )
    expected = [
        p
        for p in forty
        if (attack_type is None or p.attack_type == attack_type)
        and (wanted.since is None or p.time >= wanted.since)
        and (wanted.until is None or p.time < wanted.until)
        and (sandbox_id is None or p.sandbox_id == sandbox_id)
        and (action is None or p.action == action)
        and (min_confidence is None or p.confidence >= min_confidence)
    ]

    async def pages(store: PatternStore) -> list[AttackPattern]:
        found: list[AttackPattern] = []
        cursor = None
        while True:
            page = await store.search(wanted, limit=limit, cursor=cursor)
            assert len(page.items) == limit or page.next is None
            found += page.items
            cursor = page.next
            if cursor is None:
                return found

    assert ask(postgres_url, pages) == expected


def test_pages_of_neighbours_are_the_order_of_one_long_page(
    forty: list[AttackPattern], postgres_url: str
) -> None:
    async def both(store: PatternStore) -> None:
        wanted = Filter(attack_type="beacon")
        whole = await store.nearest([0.4] * 30, wanted, limit=1000)
        assert {p.episode_id for p, _ in whole.items} == {
            p.episode_id for p in forty if p.attack_type == "beacon"
        }
        found: list[tuple[AttackPattern, float]] = []
        cursor = None
        while len(found) < len(whole.items):
            page = await store.nearest([0.4] * 30, wanted, limit=4, cursor=cursor)
            found += page.items
            cursor = page.next
        assert cursor is None
        assert found == whole.items

    ask(postgres_url, both)


def test_a_pattern_stored_between_two_pages_moves_nothing(postgres_url: str) -> None:
    clear(postgres_url)
    upsert(postgres_url, [pattern(number) for number in range(10)])

    async def read(store: PatternStore) -> list[AttackPattern]:
        first = await store.search(limit=5)
        await asyncio.to_thread(upsert, postgres_url, [pattern(99)])
        return first.items + (await store.search(limit=5, cursor=first.next)).items

    assert ask(postgres_url, read) == [pattern(number) for number in reversed(range(10))]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_what_is_no_cursor_is_refused(postgres_url: str, text: str) -> None:
    async def both(store: PatternStore) -> None:
        with pytest.raises(CursorError):
            await store.search(cursor=text)
        with pytest.raises(CursorError):
            await store.nearest([0.5] * 30, cursor=text)

    ask(postgres_url, both)


def test_a_cursor_of_another_kind_of_search_is_refused(
    forty: list[AttackPattern], postgres_url: str
) -> None:
    async def crossed(store: PatternStore) -> None:
        page = await store.search(limit=1)
        with pytest.raises(CursorError):
            await store.nearest([0.5] * 30, cursor=page.next)

    ask(postgres_url, crossed)


@pytest.mark.parametrize("limit", [0, 1001])
def test_search_refuses_a_page_outside_its_bounds(postgres_url: str, limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        ask(postgres_url, lambda store: store.search(limit=limit))


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
        found = ask(postgres_url, lambda store: store.nearest(query, limit=limit)).items
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
    found = ask(postgres_url, lambda store: store.nearest([0.5] * 30, limit=300)).items
    distances = [distance for _, distance in found]
    assert len(found) == 300
    assert distances == sorted(distances)


def test_a_search_that_is_kept_waiting_ends_within_its_bound(postgres_url: str) -> None:
    async def run() -> None:
        async with opened(postgres_url, wait_s=0.3) as store:
            with psycopg.connect(postgres_url) as connection:
                connection.execute("LOCK TABLE attack_patterns")
                with pytest.raises(DatabaseUnavailable, match="timeout"):
                    await store.search()
            await store.search()

    asyncio.run(run())


def test_a_database_that_is_away_at_start_is_an_error_until_it_comes_back(tmp_path: Path) -> None:
    server = FastPostgres(tmp_path / "postgres")
    url = server.start()
    migrate(url)
    upsert(url, [pattern(1)])
    port = psycopg.conninfo.conninfo_to_dict(url)["port"]
    server.stop()

    async def run() -> None:
        async with opened(url, wait_s=0.5) as store:
            with pytest.raises(DatabaseUnavailable):
                await store.search()
            again = FastPostgres(tmp_path / "postgres", port=int(str(port)))
            with again:
                assert await _soon(store) == [pattern(1)]
            with pytest.raises(DatabaseUnavailable):
                await store.search()
            with FastPostgres(tmp_path / "postgres", port=int(str(port))):
                assert await _soon(store) == [pattern(1)]

    async def _soon(store: PatternStore) -> list[AttackPattern]:
        for _ in range(60):
            try:
                return (await store.search()).items
            except DatabaseUnavailable:
                await asyncio.sleep(0.1)
        raise AssertionError("the store did not find the database again")

    asyncio.run(run())
    with pytest.raises(DatabaseUnavailable):
        upsert(url, [pattern(2)], wait_s=0.3)
