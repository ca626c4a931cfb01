"""The decision log in a real PostgreSQL: once each, found by id, paged by time, pruned by age."""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import psycopg
import pytest

from drl_core.storage.database import ReadPool
from drl_serving.decisions.state import log_store
from drl_serving.decisions.state.log_store import DecisionLog, DecisionRecord
from drl_serving.http.cursor import CursorError

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
T = TypeVar("T")


def record(number: int, **changes: Any) -> DecisionRecord:
    values: dict[str, Any] = {
        "decision_id": UUID(int=number),
        "time": START + dt.timedelta(seconds=number // 2),
        "sandbox_id": f"sandbox-{number % 3}",
        "episode_id": "e",
        "step": number,
        "action": number % 5,
        "model_version": "v1",
        "sequence": 7,
        "principal": "key:1",
        "record": b'{"q_values": [0.5, 1, 2, 3, 4]}',
    }
    return DecisionRecord(**{**values, **changes})


def ask(url: str, question: Callable[[DecisionLog], Awaitable[T]]) -> T:
    async def run() -> T:
        pool = ReadPool(url)
        await pool.open()
        try:
            return await question(DecisionLog(pool))
        finally:
            await pool.close()

    return asyncio.run(run())


@pytest.fixture
def twenty(postgres_url: str) -> list[DecisionRecord]:
    """Twenty stored records, newest first, two at a time."""
    records = [record(number) for number in range(20)]
    payloads = [log_store.queue(one)[1] for one in records]
    with psycopg.connect(postgres_url) as connection:
        connection.execute("TRUNCATE decisions")
        log_store.store(connection, payloads)
        log_store.store(connection, payloads[3:5])
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (20,)
    return records[::-1]


def test_a_record_is_found_by_its_id_with_its_document(
    postgres_url: str, twenty: list[DecisionRecord]
) -> None:
    found = ask(postgres_url, lambda log: log.find(UUID(int=3)))
    assert found is not None
    assert msgspec.json.decode(found.record) == {"q_values": [0.5, 1, 2, 3, 4]}
    assert msgspec.structs.replace(found, record=record(3).record) == record(3)
    assert ask(postgres_url, lambda log: log.find(UUID(int=99))) is None


def test_pages_hold_each_record_once_newest_first(
    postgres_url: str, twenty: list[DecisionRecord]
) -> None:
    async def pages(log: DecisionLog) -> list[int]:
        found, cursor = [], None
        while True:
            page = await log.recent(limit=3, cursor=cursor)
            found += [one.step for one in page.items]
            cursor = page.next
            if cursor is None:
                return found

    assert ask(postgres_url, pages) == [one.step for one in twenty]


def test_records_are_filtered(postgres_url: str, twenty: list[DecisionRecord]) -> None:
    wanted: dict[str, Any] = {
        "sandbox_id": "sandbox-1",
        "episode_id": "e",
        "since": START + dt.timedelta(seconds=2),
        "until": START + dt.timedelta(seconds=9),
        "action": 3,
    }
    page = ask(postgres_url, lambda log: log.recent(**wanted))
    assert [one.step for one in page.items] == [13]
    with pytest.raises(CursorError):
        ask(postgres_url, lambda log: log.recent(cursor="no"))
    with pytest.raises(ValueError, match="limit"):
        ask(postgres_url, lambda log: log.recent(limit=0))


def test_pruning_removes_what_is_older(postgres_url: str, twenty: list[DecisionRecord]) -> None:
    before = START + dt.timedelta(seconds=4)
    assert log_store.prune(postgres_url, before) == 8
    assert log_store.prune(postgres_url, before) == 0
    page = ask(postgres_url, lambda log: log.recent())
    assert [one.step for one in page.items] == list(range(19, 7, -1))
