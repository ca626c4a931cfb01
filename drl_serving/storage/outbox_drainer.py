"""The outbox drainer: rows of the outbox go to PostgreSQL, in order, each once in effect.

Leader election by a lock file: one thread of every worker runs it, the one that holds the lock
drains, and when its process dies another takes over. A group of the oldest rows is stored in one
transaction and removed from the outbox after its commit; a kill between the two stores them again,
which changes nothing (idempotent). While the database is away it is retried with jittered
exponential back-off. A row that the database refuses for its content becomes a dead letter: it is
set aside with the reason, so that it stops nothing and is not lost.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import structlog
from filelock import FileLock, Timeout
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    sleep_using_event,
    stop_when_event_set,
    wait_random_exponential,
)

from drl_core.storage import patterns
from drl_core.storage.encryption import EncryptionError, Keyring
from drl_core.storage.outbox import Outbox, OutboxError, OutboxRow

Store = Callable[[psycopg.Connection[Any], Sequence[bytes]], None]
"""Stores payloads of one topic in the connection's transaction; again, it changes nothing."""

_GROUP = 500
_IDLE_S = 0.02
_LOCK_S = 0.5
_SHRINK_S = 10.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_CONNECTION: dict[str, Any] = {
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "options": "-c statement_timeout=20s -c lock_timeout=15s",
    "application_name": "drl-drainer",
}
_CONTENT = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,  # a value too long for an index
    msgspec.MsgspecError,
    ValueError,
    OverflowError,
)
"""Errors that the same row would meet for ever."""

_log = structlog.get_logger("drl_serving.storage.outbox_drainer")


class Drainer:
    """Drains one outbox into one database, in one of the processes that run it.

    Args:
        outbox: an object of its own, so that who appends does not wait for it.
        url: `postgresql://...`, migrated.
        keyring: seals patterns that an earlier version stored in clear.
        stores: what stores each topic, the outbox's consumers.
        group: most rows of one transaction.

    Its attributes are of this process: `leading` says whether it is the one that drains, `drained`
    and `set_aside` count rows since it started, `failure` is why the last attempt failed, None when
    it did not.
    """

    def __init__(
        self,
        outbox: Outbox,
        url: str,
        keyring: Keyring,
        stores: Mapping[str, Store],
        group: int = _GROUP,
    ) -> None:
        self._outbox = outbox
        self._url = url
        self._keyring = keyring
        self._stores = stores
        self._group = group
        self._connection: psycopg.Connection[Any] | None = None
        self._stop = threading.Event()
        self._shrink_at = 0.0
        self._lock_path: Path = outbox.path.with_name("drainer.lock")
        self.leading = False
        self.drained = 0
        self.set_aside = 0
        self.failure: str | None = None

    async def serve(self) -> None:
        """Run in a thread until cancelled; the group that is being stored is finished first."""
        with ThreadPoolExecutor(1, "drainer") as thread:
            running = asyncio.get_running_loop().run_in_executor(thread, self.run)
            try:
                await asyncio.shield(running)
            finally:
                self.stop()
                await running

    def stop(self) -> None:
        """Let `run` return, soon."""
        self._stop.set()

    def run(self) -> None:
        """Wait for the lock, then drain, until `stop`."""
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._lock_path, thread_local=False)
        while not self._stop.is_set():
            try:
                lock.acquire(blocking=False)
            except Timeout:
                self._stop.wait(_LOCK_S)
                continue
            try:
                self.leading = True
                self._lead()
            finally:
                self.leading = False
                self._disconnect()
                lock.release()

    def _lead(self) -> None:
        retrying = Retrying(
            wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
            sleep=sleep_using_event(self._stop),
            stop=stop_when_event_set(self._stop),
            before_sleep=self._failed,
        )
        with contextlib.suppress(RetryError):  # told to stop while it failed
            retrying(self._seal_old)  # what an earlier version stored in clear
            while not self._stop.is_set():
                began = time.monotonic()
                retrying(self.drain_group)
                took = time.monotonic() - began
                if self.failure is not None:
                    _log.info("draining again")
                    self.failure = None
                # rests as long as it worked: where much has piled up, decisions have half the time
                self._stop.wait(max(took, _IDLE_S))

    def drain_group(self) -> int:
        """Store the oldest rows and remove them; says how many there were.

        Raises:
            psycopg.Error: the database is away, or not as it should be; every row is still there.
            OutboxError: the outbox cannot be read or changed.
        """
        rows = self._outbox.peek(self._group)
        if not rows:
            return 0
        connection = self._connected()
        try:
            self._store(connection, rows)
        except _CONTENT:
            for row in rows:
                self._store_alone(connection, row)
        else:
            self._outbox.remove([row.sequence for row in rows])
            self.drained += len(rows)
        if len(rows) < self._group and time.monotonic() > self._shrink_at:
            self._outbox.shrink()
            self._shrink_at = time.monotonic() + _SHRINK_S
        return len(rows)

    def _store(self, connection: psycopg.Connection[Any], rows: Sequence[OutboxRow]) -> None:
        """All rows in one transaction, runs of one topic together."""
        with connection.transaction():
            for topic, run in groupby(rows, key=lambda row: row.topic):
                store = self._stores.get(topic)
                if store is None:
                    raise psycopg.DataError(f"no store for the topic {topic!r}")
                store(connection, [row.payload for row in run])

    def _store_alone(self, connection: psycopg.Connection[Any], row: OutboxRow) -> None:
        try:
            self._store(connection, [row])
        except _CONTENT as error:
            reason = f"{type(error).__name__}: {error}"
            self._outbox.move_to_dead_letters(row.sequence, reason)
            self.set_aside += 1
            _log.error("row set aside", topic=row.topic, key=row.key, reason=type(error).__name__)
        else:
            self._outbox.remove([row.sequence])
            self.drained += 1

    def _seal_old(self) -> None:
        if patterns.keys_in_use(self._connected()).get(None):
            try:
                patterns.reseal(self._url, self._keyring)
            except EncryptionError as error:  # for a person to fix; new rows are not to wait
                _log.error("patterns stay in clear", error=str(error))

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            self._connection = psycopg.connect(self._url, autocommit=True, **_CONNECTION)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _failed(self, attempt: RetryCallState) -> None:
        """Whatever it is, what waits must go on being tried."""
        error = attempt.outcome.exception() if attempt.outcome else None
        self._disconnect()
        if self.failure is None:
            known = isinstance(error, psycopg.Error | OutboxError)
            _log.warning(
                "draining fails, retrying with back-off",
                error=f"{type(error).__name__}: {error}",
                exc_info=None if known else error,
            )
        self.failure = str(error)
