"""Opens the pattern store and maps its failures. Decisions never wait for it."""

import contextlib
from collections.abc import AsyncIterator

from drl_core.patterns import DatabaseUnavailable, PatternStore
from drl_serving.problems import Problem


class Patterns:
    """The pattern store, where the settings name a database."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._store: PatternStore | None = None

    async def open(self) -> None:
        """Make the pool; it connects on first use, so a database that is down stops nothing."""
        if self._url is not None:
            self._store = await PatternStore.open(self._url)

    async def close(self) -> None:
        """Close the pool's connections."""
        if self._store is not None:
            await self._store.close()

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[PatternStore]:
        """The store, for one request.

        Raises:
            Problem: 503 where no database is named, or where it does not answer.
        """
        if self._store is None:
            raise Problem(
                503,
                "no-database",
                "database_url is not set, so there are no patterns to search",
                "Set DRL_DATABASE_URL (drl up does so for its embedded database) and restart.",
                field="database_url",
                retry_after_s=60,
            )
        try:
            yield self._store
        except DatabaseUnavailable as cause:
            raise Problem(
                503,
                "database-unavailable",
                "the database of patterns does not answer; decisions are not affected",
                "Try again after the time in Retry-After; if it lasts, look at the database.",
                retry_after_s=5,
            ) from cause
