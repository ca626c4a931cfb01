"""Attack patterns in a real PostgreSQL with pgvector."""

import asyncio
import contextlib
import datetime as dt
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drl_cli.postgres import EmbeddedPostgres
from drl_core import patterns
from drl_core.database import DatabaseUnavailable, ReadPool
from drl_core.encryption import EncryptionError, KeyMissing, Keyring
from drl_core.migrations import migrate
from drl_core.outbox import Outbox
from drl_core.pattern_search import CursorError, Filter, PatternStore
from drl_core.patterns import AttackPattern

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


def clear(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("TRUNCATE attack_patterns")


def test_a_stored_pattern_comes_back_unchanged(postgres_url: str) -> None:
    clear(postgres_url)
    stored = [pattern(1), pattern(2, artifact_sha256=None, metadata={})]
    assert upsert(postgres_url, stored) == 2
    assert stored_in(postgres_url) == stored[::-1]


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
    assert [p.reward for p in stored_in(postgres_url)] == [3.0]


def test_another_model_version_is_another_pattern(postgres_url: str) -> None:
    clear(postgres_url)
    assert upsert(postgres_url, [pattern(1), pattern(1, model_version="v2")]) == 2
    assert len(stored_in(postgres_url)) == 2


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
    assert stored_in(postgres_url) == []


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
        async with opened(postgres_url, wait_s=0.3) as store:
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
        async with opened(url, wait_s=0.5) as store:
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
                return (await store.search()).items
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


def test_an_older_row_from_the_outbox_overwrites_nothing_newer(postgres_url: str) -> None:
    clear(postgres_url)
    old, new = (patterns.seal(pattern(1, reward=reward), KEYS) for reward in (1.0, 2.0))
    payloads = [patterns.queue(one)[1] for one in (old, new)]
    with psycopg.connect(postgres_url) as connection:
        patterns.store(connection, payloads)
        patterns.store(connection, payloads[:1])
        patterns.store(connection, payloads)
    assert [p.reward for p in stored_in(postgres_url)] == [2.0]


def test_where_the_database_is_away_patterns_are_queued(postgres_url: str, tmp_path: Path) -> None:
    clear(postgres_url)
    outbox = Outbox(tmp_path / "outbox.sqlite")
    found = [pattern(n) for n in range(3)]
    assert patterns.upsert_or_queue(postgres_url, found, KEYS, outbox) == (3, 0)
    nowhere = psycopg.conninfo.make_conninfo(postgres_url, dbname="nowhere")
    for _ in range(2):
        assert patterns.upsert_or_queue(nowhere, found, KEYS, outbox) == (0, 3)
    assert outbox.depth(patterns.TOPIC) == 3
    with psycopg.connect(postgres_url) as connection:
        connection.execute("TRUNCATE attack_patterns")
        patterns.store(connection, [row.payload for row in outbox.peek(9)])
    assert stored_in(postgres_url) == found[::-1]


PERSONAL = "C:/Users/jane.roe/invoice.exe"


@pytest.mark.property(44)
def test_metadata_is_in_clear_neither_in_the_outbox_nor_in_the_database(tmp_path: Path) -> None:
    personal = pattern(1, metadata={"process": PERSONAL, "tags": [PERSONAL]})
    outbox = Outbox(tmp_path / "outbox.sqlite")
    outbox.append(patterns.TOPIC, [patterns.queue(patterns.seal(personal, KEYS))])
    with EmbeddedPostgres(tmp_path / "postgres") as url:
        migrate(url)
        upsert(url, [personal])
        with psycopg.connect(url) as connection:
            patterns.store(connection, [row.payload for row in outbox.peek(9)])
        assert stored_in(url) == [personal]
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")
    seen = 0
    for path in [*tmp_path.glob("outbox*"), *(tmp_path / "postgres").rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            seen += pattern(1).episode_id.encode() in content
            assert b"jane.roe" not in content, path
    assert seen >= 3, "outbox, table and write-ahead log were looked at"


@pytest.mark.property(44)
def test_a_row_moved_to_another_identity_does_not_open(postgres_url: str) -> None:
    clear(postgres_url)
    upsert(postgres_url, [pattern(1)])
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE attack_patterns SET episode_id = 'other'")
    with pytest.raises(EncryptionError, match="another row"):
        stored_in(postgres_url)


def test_rotation_goes_on_where_it_was_stopped_and_then_the_old_key_may_go(
    postgres_url: str, tmp_path: Path
) -> None:
    clear(postgres_url)
    keys = Keyring(tmp_path)
    stored = [pattern(number) for number in range(25)]
    patterns.upsert(postgres_url, stored, keys)
    with psycopg.connect(postgres_url) as connection:  # as the first version stored it
        connection.execute(
            "UPDATE attack_patterns SET sealed = NULL, key_id = NULL, metadata = %s::jsonb"
            " WHERE episode_id = 'episode-3'",
            ['{"number": 3, "tags": ["a", null, 1.5]}'],
        )
    old = keys.newest()
    new = keys.rotate()

    def stop(done: int, total: int) -> None:
        assert total == 25
        if done >= 20:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        patterns.reseal(postgres_url, keys, stop, batch=10)
    with psycopg.connect(postgres_url) as connection:
        assert patterns.keys_in_use(connection)[new] == 20
    assert patterns.reseal(postgres_url, keys, batch=10) == 5
    assert patterns.reseal(postgres_url, keys) == 0
    with psycopg.connect(postgres_url) as connection:
        assert patterns.keys_in_use(connection) == {new: 25}
        assert connection.execute("SELECT max(metadata::text) FROM attack_patterns").fetchone() == (
            None,
        )
    keys.remove(old)

    async def read() -> list[AttackPattern]:
        pool = ReadPool(postgres_url)
        await pool.open()
        try:
            return (await PatternStore(pool, Keyring(tmp_path)).search()).items
        finally:
            await pool.close()

    assert asyncio.run(read()) == stored[::-1]
    keys.rotate()
    keys.remove(new)
    with pytest.raises(KeyMissing, match=new):
        asyncio.run(read())
