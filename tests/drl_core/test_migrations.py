"""The schema comes up to date, once, whoever asks, and says what is missing."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from drl_core.migrations import MigrationError, migrate
from drl_core.storage.database import DatabaseUnavailable
from tests.postgres import temporary_database

TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
OURS = [("attack_patterns",), ("decisions",), ("drl_schema_version",), ("episode_progress",)]


@pytest.fixture
def empty(postgres_server: str) -> Iterator[str]:
    with temporary_database(postgres_server, "test_migrations_empty", "template0") as url:
        yield url


def test_several_processes_may_migrate_at_once_and_again(empty: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, [empty] * 4))
    migrate(empty)
    with psycopg.connect(empty) as connection:
        assert connection.execute(TABLES).fetchall() == OURS


def test_a_user_without_rights_is_told_so_and_nothing_is_half_made(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
        guest = psycopg.conninfo.make_conninfo(empty, user="guest", password="guest")
        with pytest.raises(MigrationError, match="lacks a right"):
            migrate(guest)
        assert connection.execute(TABLES).fetchall() == []


@pytest.mark.parametrize("change", [{"password": "wrong"}, {"dbname": "nowhere"}])
def test_a_refusal_that_waiting_does_not_mend_is_not_waited_for(
    postgres_server: str, change: dict[str, str]
) -> None:
    url = psycopg.conninfo.make_conninfo(postgres_server, **change)
    told: list[str] = []
    with pytest.raises(DatabaseUnavailable, match=r"password|nowhere"):
        migrate(url, wait_s=300, waiting=told.append)
    assert told == []


def test_every_revision_can_be_taken_back_and_applied_again(empty: str) -> None:
    migrate(empty)
    migrate(empty, to="0001")
    with psycopg.connect(empty) as connection:
        assert connection.execute(TABLES).fetchall() == [t for t in OURS if t != ("decisions",)]
        connection.execute(
            "INSERT INTO attack_patterns SELECT 's', 'e', n, 'v',"
            " array_fill(0.5, ARRAY[30])::vector, 2, 1, 'worm', 0.9, NULL, now(), m::jsonb"
            " FROM (VALUES (0, '{}'), (1, '{\"user\": \"jane\"}')) AS rows (n, m)"
        )
    migrate(empty)
    with psycopg.connect(empty) as connection:
        kept = connection.execute("SELECT metadata FROM attack_patterns ORDER BY step").fetchall()
    assert kept == [(None,), ({"user": "jane"},)]
