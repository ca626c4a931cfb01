"""What is done beside the requests, now and then, as long as a worker lives."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable, Coroutine

import structlog

from drl_core.storage.database import DatabaseUnavailable
from drl_serving.access.service import Access
from drl_serving.decisions.state import log_store
from drl_serving.observability.metrics import Metrics
from drl_serving.storage.outbox_storage import Storage

LOOK_S = 1.0
PRUNE_S = 3600.0
_log = structlog.stdlib.get_logger(__name__)


async def again_and_again(watch: Callable[[], Coroutine[None, None, None]]) -> None:
    """Work that goes on as long as the service does: where it fails, it is told and restarts."""
    while True:
        try:
            await watch()
        except Exception:  # the boundary of a task that nobody awaits
            _log.exception("background work failed, starting it again", work=watch.__qualname__)
            await asyncio.sleep(1.0)


class Upkeep:
    """Looks after credentials, the outbox's metrics and the length of the decision log."""

    def __init__(
        self, access: Access, metrics: Metrics, storage: Storage, database_url: str | None
    ) -> None:
        self._access = access
        self._storage = storage
        self._url = database_url
        self._told = OutboxTold(metrics, storage)
        self.kept_days = 90
        """How long decisions are kept; may be changed while running."""

    async def look_after(self) -> None:
        """Once a second: changed credentials, and what waits for the database."""
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(self._access.poll)
            await asyncio.to_thread(self._told.tell)

    async def prune(self) -> None:
        """Now and then, in the worker that drains: decisions that were kept long enough."""
        while True:
            await asyncio.sleep(PRUNE_S)
            drainer = self._storage.drainer
            if self._url and drainer is not None and drainer.leading:
                before = dt.datetime.now(dt.UTC) - dt.timedelta(days=self.kept_days)
                with contextlib.suppress(DatabaseUnavailable):  # the next round will do
                    await asyncio.to_thread(log_store.prune, self._url, before)


class OutboxTold:
    """Sets the gauges of the outbox, and counts what its drainer did since it was told last."""

    def __init__(self, metrics: Metrics, storage: Storage) -> None:
        self._metrics = metrics
        self._storage = storage
        self._drained = 0
        self._set_aside = 0

    def tell(self) -> None:
        """Read and tell; it reads a file, so call it in a thread."""
        metrics, drainer = self._metrics, self._storage.drainer
        metrics.outbox_depth.set(self._storage.outbox.depth())
        metrics.outbox_oldest_age.set(self._storage.outbox.oldest_age_s())
        if drainer is not None:
            drained, set_aside = drainer.drained, drainer.set_aside
            metrics.outbox_drained.inc(drained - self._drained)
            metrics.outbox_set_aside.inc(set_aside - self._set_aside)
            self._drained, self._set_aside = drained, set_aside
