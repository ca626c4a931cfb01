"""Background tasks of a worker: periodic work beside the requests, restarted where it fails."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable, Coroutine, Mapping

import structlog

from drl_core.storage import patterns
from drl_core.storage.database import DatabaseUnavailable
from drl_serving.access.service import AccessControl
from drl_serving.decisions.state import log_store
from drl_serving.observability.metrics import Metrics
from drl_serving.storage.outbox_drainer import Store
from drl_serving.storage.outbox_storage import Storage

POLL_S = 1.0
PRUNE_S = 3600.0
OUTBOX_STORES: Mapping[str, Store] = {
    patterns.TOPIC: patterns.store,
    log_store.TOPIC: log_store.store,
}
"""What the outbox drainer stores each topic with."""
_log = structlog.stdlib.get_logger(__name__)


async def run_forever(work: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a background task until cancelled: where it raises, log the error and start it again."""
    while True:
        try:
            await work()
        except Exception:  # the boundary of a task that nobody awaits
            _log.exception("background task failed, restarting it", task=work.__qualname__)
            await asyncio.sleep(1.0)


class Maintenance:
    """Periodic maintenance: reloads credentials, reports on the outbox, prunes the decision log."""

    def __init__(
        self, access: AccessControl, metrics: Metrics, storage: Storage, database_url: str | None
    ) -> None:
        self._access = access
        self._storage = storage
        self._url = database_url
        self._outbox_metrics = OutboxMetrics(metrics, storage)
        self.retention_days = 90
        """How long decisions are kept; may be changed while running."""

    async def reload_credentials_and_report_outbox(self) -> None:
        """Once a second: reload API keys that changed, and set the outbox's metrics."""
        while True:
            await asyncio.sleep(POLL_S)
            await asyncio.to_thread(self._access.poll)
            await asyncio.to_thread(self._outbox_metrics.update)

    async def prune_decision_log(self) -> None:
        """Once an hour, in the worker that leads the drain: delete decisions past retention."""
        while True:
            await asyncio.sleep(PRUNE_S)
            drainer = self._storage.drainer
            if self._url and drainer is not None and drainer.leading:
                before = dt.datetime.now(dt.UTC) - dt.timedelta(days=self.retention_days)
                with contextlib.suppress(DatabaseUnavailable):  # the next round will do
                    await asyncio.to_thread(log_store.prune, self._url, before)


class OutboxMetrics:
    """The outbox's depth and age as gauges, its drainer's rows as counters."""

    def __init__(self, metrics: Metrics, storage: Storage) -> None:
        self._metrics = metrics
        self._storage = storage
        self._drained = 0
        self._set_aside = 0

    def update(self) -> None:
        """Read the outbox and set the metrics; it reads a file, so call it in a thread."""
        metrics, drainer = self._metrics, self._storage.drainer
        metrics.outbox_depth.set(self._storage.outbox.depth())
        metrics.outbox_oldest_age.set(self._storage.outbox.oldest_age_s())
        if drainer is not None:
            drained, set_aside = drainer.drained, drainer.set_aside
            metrics.outbox_drained.inc(drained - self._drained)
            metrics.outbox_set_aside.inc(set_aside - self._set_aside)
            self._drained, self._set_aside = drained, set_aside
