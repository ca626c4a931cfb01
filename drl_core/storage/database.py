"""The way to PostgreSQL: one bounded, retrying connect, and one error for a database that is away.

A URL goes in; a connection of psycopg 3, or `DatabaseUnavailable`, comes out. `ReadPool` is the
service's: a few connections shared by what it reads, each answer within a bounded time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import psycopg
from pgvector.psycopg import register_vector_async
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

CONNECT_WAIT_S = 10.0
"""How long a connection is tried before the database is called unavailable."""

_LONGEST_PAUSE_S = 2.0


class DatabaseUnavailable(RuntimeError):  # noqa: N818
    """The database gives no answer within the bounded wait."""


def connect(
    url: str,
    wait_s: float = CONNECT_WAIT_S,
    waiting: Callable[[str], None] | None = None,
) -> psycopg.Connection[tuple[Any, ...]]:
    """Connect, trying again with a growing pause while the server is away or starting.

    Args:
        url: `postgresql://...`.
        wait_s: seconds in all.
        waiting: told the reason once, when the first attempt has failed.

    Raises:
        DatabaseUnavailable: no connection in that time, or a refusal that waiting does not mend.
    """
    deadline = time.monotonic() + wait_s
    pause = 0.1
    while True:
        try:
            return psycopg.connect(url, connect_timeout=max(2, min(10, int(wait_s))))
        except psycopg.OperationalError as error:
            reason = str(error).strip()
            refused = "authentication failed" in reason or " does not exist" in reason
            if refused or time.monotonic() + pause > deadline:
                raise DatabaseUnavailable(f"no connection in {wait_s:g} s: {reason}") from None
        if waiting is not None:
            waiting(reason)
            waiting = None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


class ReadPool:
    """Connections for reading. Opening never fails: it connects on first use, and again later.

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
