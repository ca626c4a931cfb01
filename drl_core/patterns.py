"""Attack patterns: what a released policy decided on which state, kept in PostgreSQL with pgvector.

The asset graph writes them with `upsert`; the service reads them through a `PatternStore`, which
opens without a database and finds it again when it comes back. Features are stored in single
precision, the precision of the graph's output.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any, Self

import msgspec
import numpy as np
import numpy.typing as npt
import psycopg
from msgspec import Meta, Struct, field
from pgvector import Vector
from pgvector.psycopg import register_vector, register_vector_async
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from drl_core.actions import ACTION_COUNT
from drl_core.database import CONNECT_WAIT_S, DatabaseUnavailable, connect
from drl_core.features import FEATURE_COUNT
from drl_core.telemetry import EpisodeId, SandboxId, Sha256

__all__ = ["AttackPattern", "DatabaseUnavailable", "PatternStore", "upsert"]

MAX_LIMIT = 1000
"""Most patterns that one search gives."""
_CANDIDATES = 400
"""What the vector index looks at for one search; up to as many rows the answer is exact."""

Features = Annotated[list[float], Meta(min_length=FEATURE_COUNT, max_length=FEATURE_COUNT)]


class AttackPattern(Struct, frozen=True, kw_only=True):
    """One decision worth remembering.

    (sandbox_id, episode_id, step, model_version) is its identity. `features` are the 30 of
    `drl_core.features`, `reward` is the hindsight reward of `action`, `confidence` is the policy's,
    `time` is the end of the window.
    """

    sandbox_id: SandboxId
    episode_id: EpisodeId
    step: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    model_version: str
    features: Features
    action: Annotated[int, Meta(ge=0, lt=ACTION_COUNT)]
    reward: float
    attack_type: str
    confidence: Annotated[float, Meta(ge=0, le=1)]
    time: Annotated[dt.datetime, Meta(tz=True)]
    artifact_sha256: Sha256 | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


_COLUMNS = AttackPattern.__struct_fields__
_KEY = ("sandbox_id", "episode_id", "step", "model_version")
_VALUES = tuple(name for name in _COLUMNS if name not in _KEY)
_LIST = ", ".join(f'"{name}"' for name in _COLUMNS)
_UPSERT = f"""
    INSERT INTO attack_patterns AS old ({_LIST})
    SELECT DISTINCT ON ({", ".join(_KEY)}) {_LIST} FROM incoming
    ORDER BY {", ".join(_KEY)}, arrival DESC
    ON CONFLICT ({", ".join(_KEY)}) DO UPDATE
    SET {", ".join(f'"{name}" = excluded."{name}"' for name in _VALUES)}
    WHERE ({", ".join(f'old."{name}"' for name in _VALUES)})
        IS DISTINCT FROM ({", ".join(f'excluded."{name}"' for name in _VALUES)})
"""  # noqa: S608  (names of our own)

_BULK = 1000
_INDEX = "attack_patterns_by_features"
_INDEX_DEFINITION = f"SELECT indexdef FROM pg_indexes WHERE indexname = '{_INDEX}'"  # noqa: S608


def upsert(url: str, patterns: Iterable[AttackPattern], wait_s: float = CONNECT_WAIT_S) -> int:
    """Store patterns in one transaction; storing the same ones again changes nothing.

    Args:
        url: `postgresql://...`, migrated.
        patterns: any number, streamed; of several with one identity the last one counts.
        wait_s: seconds to wait for the database.

    Returns:
        Distinct patterns stored, unchanged ones included.

    Raises:
        DatabaseUnavailable: no connection in that time, or it broke; nothing is stored then.
        msgspec.ValidationError: a pattern breaks its contract; nothing is stored.
    """
    try:
        with connect(url, wait_s) as connection:
            register_vector(connection)
            connection.execute("LOCK TABLE attack_patterns IN SHARE ROW EXCLUSIVE MODE")
            connection.execute(
                "CREATE TEMPORARY TABLE incoming (LIKE attack_patterns, arrival serial)"
                " ON COMMIT DROP"
            )
            with (
                connection.cursor() as cursor,
                cursor.copy(f"COPY incoming ({_LIST}) FROM STDIN (FORMAT binary)") as copy,
            ):
                copy.set_types([_TYPES[name] for name in _COLUMNS])
                for pattern in patterns:
                    copy.write_row(_row(pattern))
            stored, distinct, fresh = _counts(connection)
            bulk = fresh >= _BULK and fresh * 10 > stored
            index = connection.execute(_INDEX_DEFINITION).fetchone() if bulk else None
            if index:  # to build the vector index anew is about 10 times cheaper than to extend it
                connection.execute(f"DROP INDEX {_INDEX}")
            connection.execute(_UPSERT)
            if index:
                connection.execute(index[0])
            return distinct
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable(f"storing patterns: {error}") from error


def _counts(connection: psycopg.Connection[Any]) -> tuple[int, int, int]:
    """Rows stored, distinct rows incoming, and those of them that are new to the vector index."""
    keys = ", ".join(_KEY)
    row = connection.execute(
        "SELECT (SELECT count(*) FROM attack_patterns),"  # noqa: S608
        f" (SELECT count(*) FROM (SELECT DISTINCT {keys} FROM incoming)),"
        f" (SELECT count(*) FROM (SELECT {keys}, features FROM incoming"
        f" EXCEPT SELECT {keys}, features FROM attack_patterns))"
    ).fetchone()
    return row or (0, 0, 0)


_TYPES = {
    "sandbox_id": "text",
    "episode_id": "text",
    "step": "int4",
    "model_version": "text",
    "features": "vector",
    "action": "int2",
    "reward": "float8",
    "attack_type": "text",
    "confidence": "float8",
    "time": "timestamptz",
    "artifact_sha256": "text",
    "metadata": "jsonb",
}


def _row(pattern: AttackPattern) -> list[Any]:
    valid = msgspec.convert(msgspec.to_builtins(pattern), AttackPattern)
    values = msgspec.structs.asdict(valid)
    values["features"] = Vector(valid.features)
    values["metadata"] = Jsonb(valid.metadata)
    return [values[name] for name in _COLUMNS]


class PatternStore:
    """Reads patterns for the service. Opening never fails; each call waits a bounded time.

    Every method raises `DatabaseUnavailable` while the database gives no answer.
    """

    def __init__(self, pool: AsyncConnectionPool[Any], wait_s: float) -> None:
        self._pool = pool
        self._wait_s = wait_s

    @classmethod
    async def open(cls, url: str, *, max_connections: int = 4, wait_s: float = 2.0) -> Self:
        """Open a pool that connects on first use, and again after the database was away."""
        pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            url,
            min_size=0,
            max_size=max_connections,
            open=False,
            timeout=wait_s,
            reconnect_timeout=wait_s,
            kwargs={"row_factory": dict_row, "connect_timeout": 2},
            configure=partial(_configure, wait_s),
            check=AsyncConnectionPool.check_connection,
            name="patterns",
        )
        await pool.open(wait=False)
        return cls(pool, wait_s)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def search(
        self,
        *,
        attack_type: str | None = None,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> list[AttackPattern]:
        """Patterns by type and time, newest first.

        Args:
            attack_type: exactly this one; None for all.
            since: the earliest time, included.
            until: the latest time, excluded.
            limit: 1..1000.
            offset: how many to skip.
        """
        _check_limit(limit)
        if offset < 0:
            raise ValueError(f"offset: {offset} is negative")
        conditions = {"attack_type = %s": attack_type, '"time" >= %s': since, '"time" < %s': until}
        used = {text: value for text, value in conditions.items() if value is not None}
        rows = await self._fetch(
            f"SELECT {_LIST} FROM attack_patterns WHERE {' AND '.join(['true', *used])}"  # noqa: S608
            f' ORDER BY "time" DESC, {", ".join(_KEY)} LIMIT %s OFFSET %s',
            [*used.values(), limit, offset],
        )
        return [_pattern(row) for row in rows]

    async def nearest(
        self, features: Sequence[float] | npt.NDArray[np.floating[Any]], limit: int = 10
    ) -> list[tuple[AttackPattern, float]]:
        """The patterns nearest to a state, with their Euclidean distances, nearest first.

        Args:
            features: shape [30], finite.
            limit: 1..1000.
        """
        _check_limit(limit)
        vector = np.asarray(features, dtype=np.float32)
        if vector.shape != (FEATURE_COUNT,) or not np.isfinite(vector).all():
            raise ValueError(f"features: {FEATURE_COUNT} finite numbers are expected")
        rows = await self._fetch(
            f"SELECT {_LIST}, features <-> %s AS distance FROM attack_patterns"  # noqa: S608
            " ORDER BY distance LIMIT %s",
            [Vector(vector), limit],
            candidates=max(_CANDIDATES, limit),
        )
        return [(_pattern(row), float(row["distance"])) for row in rows]

    async def _fetch(
        self, query: str, parameters: list[Any], candidates: int | None = None
    ) -> list[dict[str, Any]]:
        try:
            async with self._pool.connection(timeout=self._wait_s) as connection:
                if candidates is not None:
                    await connection.execute(
                        "SELECT set_config('hnsw.ef_search', %s, true),"
                        " set_config('hnsw.iterative_scan', 'strict_order', true)",
                        [str(candidates)],
                    )
                cursor = await connection.execute(query, parameters)
                rows: list[dict[str, Any]] = await cursor.fetchall()
                return rows
        except (PoolTimeout, psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise DatabaseUnavailable(f"reading patterns: {error}") from error


async def _configure(wait_s: float, connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute(
        "SELECT set_config('statement_timeout', %s, false)", [f"{wait_s * 1000:.0f}ms"]
    )
    await register_vector_async(connection)
    await connection.commit()


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit: {limit} is not in 1..{MAX_LIMIT}")


def _pattern(row: dict[str, Any]) -> AttackPattern:
    values = {name: row[name] for name in _COLUMNS}
    values["features"] = [float(value) for value in row["features"].to_list()]
    return AttackPattern(**values)
