"""The transactional outbox with its drainer, the read pool of the database, the encryption keys.

`submit` returns when rows are on this machine's disk; a thread carries them into PostgreSQL when it
is there. Opening waits for nothing, so a database that is away, or none, stops no decision.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from drl_core.settings import Settings
from drl_core.storage.database import ReadPool
from drl_core.storage.encryption import Keyring
from drl_core.storage.outbox import Outbox, OutboxError
from drl_serving.http.problems import Problem
from drl_serving.storage.group_commit import GroupCommit
from drl_serving.storage.outbox_drainer import Drainer, Store

Item = tuple[str, str, bytes]
"""Topic, key, payload."""

_CAPACITY = 20_000
_MAX_GROUP = 1000


class Storage:
    """The parts, of one worker; every worker has the same outbox, and one of them drains it.

    `database` and `drainer` are None where the settings name no database.

    Args:
        settings: where the outbox, the keys and the database are.
        stores: what stores each topic of the outbox in the database.
    """

    def __init__(self, settings: Settings, stores: Mapping[str, Store]) -> None:
        path = settings.state_path / "outbox.sqlite"
        url = settings.database_url
        self.keyring = Keyring(settings.keys_path)
        self.outbox = Outbox(path)
        self.database = ReadPool(url) if url else None
        self.drainer = Drainer(Outbox(path), url, self.keyring, stores) if url else None
        self._writer: GroupCommit[Item] | None = None
        self._draining: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Rows that this worker has not yet made durable."""
        return self._writer.depth if self._writer else 0

    async def open(self) -> None:
        """Start what runs beside the requests, in the running event loop."""
        self._writer = GroupCommit(
            self.outbox.append_all, capacity=_CAPACITY, max_group=_MAX_GROUP, name="outbox"
        )
        if self.database is not None:
            await self.database.open()
        if self.drainer is not None:
            self._draining = asyncio.create_task(self.drainer.serve())

    async def close(self) -> None:
        """Write what was submitted, and end the drainer after its group."""
        if self._writer is not None:
            await self._writer.close()
        if self._draining is not None:
            self._draining.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._draining
        if self.database is not None:
            await self.database.close()
        await asyncio.to_thread(self.outbox.close)

    async def submit(self, rows: Sequence[Item]) -> None:
        """Return when all rows are durable.

        Raises:
            Problem: 503, the disk refused; none was taken.
            BufferFull: too many wait already; none was taken.
        """
        if self._writer is None:
            raise RuntimeError("the storage is not open")
        try:
            await self._writer.submit(rows)
        except OutboxError as error:
            raise Problem(
                503,
                "outbox-failed",
                f"the outbox cannot be written ({error.reason}); nothing was kept",
                "Keep what was sent and send it again; look at the disk of the state folder.",
                retry_after_s=5,
            ) from error
