"""The decision log: what was decided when, by which model, for whom; kept in PostgreSQL.

The service hands records to the outbox (`queue`), the drainer stores them (`store`), `DecisionLog`
reads them. The record itself is JSON that this module does not look into; the columns beside it are
what is searched by.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

import msgspec
import psycopg
from msgspec import Meta, Struct

from drl_core.storage.database import CONNECT_WAIT_S, DatabaseUnavailable, ReadPool, connect
from drl_serving.http.cursor import Page, decode, encode

TOPIC = "decisions"
"""Of the outbox."""
MAX_LIMIT = 1000
"""Most records of one page."""
_PRUNE_ROWS = 5000


class DecisionRecord(Struct, frozen=True, kw_only=True):
    """One decision. `record` is a JSON document; `sequence` is the release's number."""

    decision_id: UUID
    time: Annotated[dt.datetime, Meta(tz=True)]
    sandbox_id: str
    episode_id: str
    step: int
    action: int
    model_version: str
    sequence: int
    principal: str
    record: bytes


_COLUMNS = DecisionRecord.__struct_fields__
_LIST = ", ".join(f'"{name}"' for name in _COLUMNS)
_READ = ", ".join(f'"{name}"' for name in _COLUMNS[:-1]) + ", record::text AS record"
_STORE = f"""
    INSERT INTO decisions ({_LIST})
    VALUES ({", ".join(f"%({name})s" for name in _COLUMNS)}) ON CONFLICT DO NOTHING
"""  # noqa: S608  (names of our own)
_payloads = msgspec.msgpack.Decoder(DecisionRecord)
_encoder = msgspec.msgpack.Encoder()


class _LogKey(Struct, frozen=True, array_like=True):
    """The last record of a page."""

    time: dt.datetime
    decision_id: UUID


def queue(record: DecisionRecord) -> tuple[str, bytes]:
    """A record's key and payload for the topic `decisions` of the outbox."""
    return str(record.decision_id), _encoder.encode(record)


def payload(content: bytes) -> DecisionRecord:
    """The record of an outbox's row.

    Raises:
        msgspec.ValidationError: it is none.
    """
    return _payloads.decode(content)


def store(connection: psycopg.Connection[Any], payloads: Sequence[bytes]) -> None:
    """Store what came out of the outbox, in the connection's transaction.

    One that is stored already changes nothing.
    """
    rows = []
    for content in payloads:
        values = msgspec.structs.asdict(payload(content))
        rows.append({**values, "record": values["record"].decode()})
    with connection.cursor() as cursor:
        cursor.executemany(_STORE, rows)


def prune(url: str, before: dt.datetime, wait_s: float = CONNECT_WAIT_S) -> int:
    """Remove records that are older, in small transactions, and say how many.

    Raises:
        DatabaseUnavailable: no connection, or it broke; what was removed stays removed.
    """
    removed = 0
    try:
        with connect(url, wait_s) as connection:
            connection.autocommit = True
            while True:
                count = connection.execute(
                    "DELETE FROM decisions WHERE decision_id IN"
                    ' (SELECT decision_id FROM decisions WHERE "time" < %s'
                    ' ORDER BY "time" LIMIT %s)',
                    [before, _PRUNE_ROWS],
                ).rowcount
                removed += count
                if count < _PRUNE_ROWS:
                    return removed
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable(f"pruning decisions: {error}") from error


class DecisionLog:
    """Reads the log. Every method raises `DatabaseUnavailable` while the database is away.

    What waits in the outbox is not in the log yet: `Outbox.find(TOPIC, str(decision_id))` has it.
    """

    def __init__(self, pool: ReadPool) -> None:
        self._pool = pool

    async def find(self, decision_id: UUID) -> DecisionRecord | None:
        """The record of a decision, None where it was not kept or is pruned."""
        rows = await self._pool.fetch(
            f"SELECT {_READ} FROM decisions WHERE decision_id = %s",  # noqa: S608
            [decision_id],
        )
        return _record(rows[0]) if rows else None

    async def recent(
        self,
        *,
        sandbox_id: str | None = None,
        episode_id: str | None = None,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        action: int | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[DecisionRecord]:
        """Records, newest first, a page at a time.

        Args:
            sandbox_id: of one sandbox.
            episode_id: of one episode.
            since: the earliest time, included.
            until: the latest time, excluded.
            action: of one action.
            limit: 1..1000.
            cursor: of the page before.

        Raises:
            CursorError: it is none of this log's.
        """
        if not 1 <= limit <= MAX_LIMIT:
            raise ValueError(f"limit: {limit} is not in 1..{MAX_LIMIT}")
        conditions: dict[str, Any] = {
            "sandbox_id = %s": sandbox_id,
            "episode_id = %s": episode_id,
            '"time" >= %s': since,
            '"time" < %s': until,
            "action = %s": action,
        }
        used = {text: value for text, value in conditions.items() if value is not None}
        where, values = ["true", *used], [*used.values()]
        if cursor is not None:
            after = decode(cursor, _LogKey)
            where.append('("time", decision_id) < (%s, %s)')
            values += [after.time, after.decision_id]
        rows = await self._pool.fetch(
            f"SELECT {_READ} FROM decisions WHERE {' AND '.join(where)}"  # noqa: S608
            ' ORDER BY "time" DESC, decision_id DESC LIMIT %s',
            [*values, limit + 1],
        )
        found = [_record(row) for row in rows[:limit]]
        if len(rows) <= limit:
            return Page(found, None)
        return Page(found, encode(_LogKey(found[-1].time, found[-1].decision_id)))


def _record(row: dict[str, Any]) -> DecisionRecord:
    return DecisionRecord(**{**row, "record": row["record"].encode()})
