"""PostgreSQL connections: connect with exponential back-off, and a read-only connection pool.

A URL goes in; a connection of psycopg 3, or `DatabaseUnavailable` after a bounded wait, comes out.
`ReadPool` is the service's: a few connections, each query answered within a bounded time.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import psycopg
from pgvector.psycopg import register_vector_async
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_before_delay,
    wait_exponential,
)

CONNECT_WAIT_S = 10.0
"""How long a connection is tried before the database is called unavailable."""

_LONGEST_PAUSE_S = 2.0


def sqlalchemy_url(url: str) -> str:
    """The URL for SQLAlchemy with psycopg2, which dagster-postgres needs."""
    return re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql+psycopg2://", url)


class DatabaseUnavailable(RuntimeError):  # noqa: N818
    """The database gives no answer within the bounded wait."""


def connect(
    url: str,
    wait_s: float = CONNECT_WAIT_S,
    waiting: Callable[[str], None] | None = None,
) -> psycopg.Connection[tuple[Any, ...]]:
    """Connect; retry with exponential back-off while the server is away or starting.

    Args:
        url: `postgresql://...`.
        wait_s: seconds in all.
        waiting: called once, with the reason, when the first attempt has failed.

    Raises:
        DatabaseUnavailable: no connection in that time, or a refusal that waiting does not fix.
    """
    attempts = Retrying(
        retry=retry_if_exception(_may_recover),
        stop=stop_before_delay(wait_s),
        wait=wait_exponential(multiplier=0.1, max=_LONGEST_PAUSE_S),
        before_sleep=partial(_report_first_failure, waiting) if waiting else None,
        reraise=True,
    )
    try:
        return attempts(psycopg.connect, url, connect_timeout=max(2, min(10, int(wait_s))))
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"no connection in {wait_s:g} s: {str(error).strip()}") from None


def _may_recover(error: BaseException) -> bool:
    refused = ("authentication failed", " does not exist")
    return isinstance(error, psycopg.OperationalError) and not any(
        words in str(error) for words in refused
    )


def _report_first_failure(waiting: Callable[[str], None], state: RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome is not None:
        waiting(str(state.outcome.exception()).strip())


class ReadPool:
    """A connection pool for queries. Opening never fails: it connects on first use, and reconnects.

    Args:
        url: `postgresql://...`, migrated.
        max_connections: of this process.
        wait_s: longest wait for a connection, and for an answer.
    """

    def __init__(self, url: str, *, max_connections: int = 4, wait_s: float = 2.0) -> None:
        self._wait_s = wait_s
        self._pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            url,
            min_size=0,
            max_size=max_connections,
            open=False,
            timeout=wait_s,
            reconnect_timeout=wait_s,
            kwargs={"row_factory": dict_row, "connect_timeout": 2},
            configure=partial(_configure, wait_s),
            check=AsyncConnectionPool.check_connection,
            name="reads",
        )

    async def open(self) -> None:
        """Start the pool's own tasks, in the running event loop."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close()

    async def fetch(
        self,
        query: str,
        parameters: Sequence[Any] = (),
        options: Mapping[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """The rows of a query, by column name.

        Args:
            query: with a placeholder for each parameter.
            parameters: their values.
            options: settings of the server for this query alone.

        Raises:
            DatabaseUnavailable: no answer within the bounded wait.
        """
        try:
            async with self._pool.connection(timeout=self._wait_s) as connection:
                for name, value in (options or {}).items():
                    await connection.execute("SELECT set_config(%s, %s, true)", [name, value])
                cursor = await connection.execute(query, parameters, binary=True)
                rows: list[dict[str, Any]] = await cursor.fetchall()
                return rows
        except (PoolTimeout, psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise DatabaseUnavailable(f"reading: {error}") from error


async def _configure(wait_s: float, connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute(
        "SELECT set_config('statement_timeout', %s, false)", [f"{wait_s * 1000:.0f}ms"]
    )
    await register_vector_async(connection)
    await connection.commit()
