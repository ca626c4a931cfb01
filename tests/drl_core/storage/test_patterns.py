"""Attack patterns in a real PostgreSQL with pgvector: stored once, sealed, sealed anew."""

import asyncio
import datetime as dt
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from stored_patterns import KEYS, clear, pattern, stored_in, upsert

from drl_cli.local.embedded_postgres import EmbeddedPostgres
from drl_core.migrations import migrate
from drl_core.storage import patterns
from drl_core.storage.database import ReadPool
from drl_core.storage.encryption import EncryptionError, KeyMissing, Keyring
from drl_core.storage.outbox import Outbox
from drl_core.storage.patterns import AttackPattern
from drl_serving.patterns.search import PatternStore


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


def test_importing_the_patterns_brings_no_sqlalchemy() -> None:
    modules = "drl_core.storage.patterns, drl_assets.tables.episode_progress, sys"
    code = f"import {modules}; print('sqlalchemy' in sys.modules)"
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
