"""The outbox: a durable, idempotent queue with dead letters, in one SQLite file before PostgreSQL.

Writers append rows of a topic, each with a key of its own; when `append` returns they survive a
kill -9 and a power cut. One reader takes the oldest rows, stores them elsewhere, and removes them
after that. A row that can never be stored becomes a dead letter with the reason. Several processes
may use one file at once; every failure of the disk or the file is an `OutboxError`.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from msgspec import Struct

_WAIT_S = 10.0
"""How long to wait for another process's transaction."""
_WAL_BYTES = 16 << 20
"""The size that the write-ahead log is truncated to after a checkpoint."""
_PAGE_BYTES = 4096
_SHRINK_PAGES = 20_000
"""Most pages freed at once, since writers wait meanwhile."""
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS outbox (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        topic TEXT NOT NULL, key TEXT NOT NULL, payload BLOB NOT NULL, added_at REAL NOT NULL,
        UNIQUE (topic, key)
    );
    CREATE TABLE IF NOT EXISTS dead_letters (
        sequence INTEGER PRIMARY KEY,
        topic TEXT NOT NULL, key TEXT NOT NULL, payload BLOB NOT NULL, added_at REAL NOT NULL,
        reason TEXT NOT NULL, set_aside_at REAL NOT NULL
    );
"""
_ROW = "sequence, topic, key, payload, added_at"


class OutboxError(RuntimeError):
    """The outbox cannot be used now: full disk, read-only or damaged file; nothing was changed.

    `reason` is SQLite's name of the error, such as SQLITE_FULL.
    """

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(f"outbox {path}: {error}")
        self.reason: str = getattr(error, "sqlite_errorname", type(error).__name__)


class OutboxRow(Struct, frozen=True):
    """A queued row; `added_at` is in epoch seconds."""

    sequence: int
    topic: str
    key: str
    payload: bytes
    added_at: float


class OutboxDeadLetter(Struct, frozen=True):
    """A row that the database refused for its content."""

    row: OutboxRow
    reason: str
    set_aside_at: float


class Outbox:
    """The queue. The file is opened on first use, and reopened after a failure.

    Args:
        path: of the SQLite file; made on first use, mode 0600.
        max_bytes: size above which rows are refused (SQLITE_FULL).

    One object may be used from several threads.
    """

    def __init__(self, path: Path, *, max_bytes: int = 8 << 30) -> None:
        self.path = path
        self._max_pages = max_bytes // _PAGE_BYTES
        self._lock = threading.Lock()
        self._open: sqlite3.Connection | None = None

    def append(self, topic: str, rows: Sequence[tuple[str, bytes]]) -> None:
        """Add (key, payload) rows in one transaction; durable when this returns.

        A key that is queued in the topic already changes nothing.

        Raises:
            OutboxError: none was added.
        """
        self.append_all([(topic, key, payload) for key, payload in rows])

    def append_all(self, rows: Sequence[tuple[str, str, bytes]]) -> None:
        """Add (topic, key, payload) rows of several topics, otherwise like `append`."""
        if not rows:
            return
        now = time.time()
        with self._transaction() as database:
            database.executemany(
                "INSERT INTO outbox (topic, key, payload, added_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                [(*row, now) for row in rows],
            )

    def peek(self, limit: int) -> list[OutboxRow]:
        """The oldest rows, in the order in which they were added."""
        with self._using() as database:
            found = database.execute(
                f"SELECT {_ROW} FROM outbox ORDER BY sequence LIMIT ?",  # noqa: S608
                [limit],
            )
            return [OutboxRow(*row) for row in found]

    def remove(self, sequences: Sequence[int]) -> None:
        """Remove rows that are stored elsewhere; a row that is gone already is no error."""
        with self._transaction() as database:
            database.executemany("DELETE FROM outbox WHERE sequence = ?", [[s] for s in sequences])

    def find(self, topic: str, key: str) -> OutboxRow | None:
        """The row with a key, None where it is not queued."""
        with self._using() as database:
            row = database.execute(
                f"SELECT {_ROW} FROM outbox WHERE topic = ? AND key = ?",  # noqa: S608
                [topic, key],
            ).fetchone()
            return OutboxRow(*row) if row else None

    def move_to_dead_letters(self, sequence: int, reason: str) -> None:
        """Make a row a dead letter, with the reason why it cannot be stored."""
        with self._transaction() as database:
            database.execute(
                f"INSERT INTO dead_letters SELECT {_ROW}, ?, ? FROM outbox WHERE sequence = ?",  # noqa: S608
                [reason, time.time(), sequence],
            )
            database.execute("DELETE FROM outbox WHERE sequence = ?", [sequence])

    def dead_letters(self, limit: int = 100) -> list[OutboxDeadLetter]:
        """The oldest dead letters."""
        with self._using() as database:
            found = database.execute(
                f"SELECT {_ROW}, reason, set_aside_at FROM dead_letters"  # noqa: S608
                " ORDER BY sequence LIMIT ?",
                [limit],
            )
            return [OutboxDeadLetter(OutboxRow(*row[:5]), row[5], row[6]) for row in found]

    def requeue(self) -> int:
        """Put every dead letter back at the end of the queue; returns how many."""
        with self._transaction() as database:
            database.execute(
                "INSERT INTO outbox (topic, key, payload, added_at)"
                " SELECT topic, key, payload, added_at FROM dead_letters WHERE true"
                " ORDER BY sequence ON CONFLICT DO NOTHING"
            )
            return database.execute("DELETE FROM dead_letters").rowcount

    def iterate(self, topic: str, limit: int = 500) -> Iterator[OutboxRow]:
        """Every row of a topic, then its dead letters, in order, read in pages."""
        for table in ("outbox", "dead_letters"):
            last = -1
            while True:
                with self._using() as database:
                    page = database.execute(
                        f"SELECT {_ROW} FROM {table} WHERE topic = ? AND sequence > ?"  # noqa: S608
                        " ORDER BY sequence LIMIT ?",
                        [topic, last, limit],
                    ).fetchall()
                yield from (OutboxRow(*row) for row in page)
                if not page:
                    break
                last = page[-1][0]

    def depth(self, topic: str | None = None) -> int:
        """The number of queued rows."""
        query, values = "SELECT count(*) FROM outbox", []
        if topic is not None:
            query, values = f"{query} WHERE topic = ?", [topic]
        with self._using() as database:
            return int(database.execute(query, values).fetchone()[0])

    def dead_letter_count(self) -> int:
        """The number of dead letters."""
        with self._using() as database:
            return int(database.execute("SELECT count(*) FROM dead_letters").fetchone()[0])

    def oldest_age_s(self) -> float:
        """Age of the oldest queued row in seconds; 0 where there is none."""
        with self._using() as database:
            row = database.execute(
                "SELECT added_at FROM outbox ORDER BY sequence LIMIT 1"
            ).fetchone()
        return max(0.0, time.time() - row[0]) if row else 0.0

    def shrink(self) -> None:
        """Free pages of removed rows and truncate the log, a bounded part at a time."""
        with self._using() as database:
            # as a script: `execute` would take one step, which frees one page
            database.executescript(f"PRAGMA incremental_vacuum({_SHRINK_PAGES})")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Close the file; a later use reopens it."""
        with self._lock:
            self._drop()

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._open is None:
                    self._open = self._connect()
                yield self._open
            except (sqlite3.Error, OSError, Timeout) as error:
                self._drop()
                raise OutboxError(self.path, error) from error
            except BaseException:
                self._drop()  # perhaps in the middle of a transaction
                raise

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._using() as database:
            database.execute("BEGIN IMMEDIATE")
            yield database
            database.execute("COMMIT")

    def _drop(self) -> None:
        """Close the connection: SQLite rolls back what was not committed."""
        opened, self._open = self._open, None
        if opened is not None:
            opened.close()

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # switching to the write-ahead log needs exclusive access, and SQLite does not wait for it
        with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=_WAIT_S):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            database = sqlite3.connect(
                self.path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
            )
            try:
                database.execute(f"PRAGMA page_size={_PAGE_BYTES}")
                database.execute("PRAGMA auto_vacuum=INCREMENTAL")
                database.execute("PRAGMA journal_mode=WAL").fetchall()
                database.execute("PRAGMA synchronous=FULL")
                database.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}").fetchall()
                database.execute(f"PRAGMA max_page_count={self._max_pages}").fetchall()
                database.executescript(_SCHEMA)
            except BaseException:
                database.close()
                raise
            return database
