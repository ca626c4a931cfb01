"""Shared memory of the workers: one LMDB environment in the state folder.

Every worker maps the same file, so whichever one answers, it finds each episode as the last one
left it. A transaction costs microseconds and is whole or not there, also when a worker is killed in
the middle. Nothing is synced to disk: the file outlives every process, but not the machine, so it
is made anew after a boot, and the episodes come back from landed telemetry.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
from filelock import FileLock

BYTES_PER_EPISODE = 8192
"""Room in the map for one episode, its place in the order of age, and free pages."""
_OTHER_BYTES = 2 << 30
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DATABASES = ("episodes", "ages", "journal", "marks", "buckets")


class SharedState:
    """An open environment with its named databases.

    Args:
        path: the state folder, on a local disk; made if it is not there.
        max_episodes: how many episodes the map must have room for.
    """

    def __init__(self, path: Path, max_episodes: int) -> None:
        folder = path / "shared"
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / ".shared.lock"):
            _require_this_boot(folder)
            self.env = lmdb.open(
                str(folder),
                map_size=max_episodes * BYTES_PER_EPISODE + _OTHER_BYTES,
                max_dbs=len(_DATABASES),
                max_readers=1024,
                sync=False,
                metasync=False,
                writemap=True,
                map_async=True,
            )
            self.env.reader_check()  # slots of readers that were killed
            opened = {name: self.env.open_db(name.encode()) for name in _DATABASES}
        self.episodes = opened["episodes"]
        """Episode key -> where the episode stands."""
        self.ages = opened["ages"]
        """Time of last use and episode key -> nothing; the oldest comes first."""
        self.journal = opened["journal"]
        """Rising number -> decision."""
        self.marks = opened["marks"]
        """Name -> number: how far the journal was carried on, when restoring was done."""
        self.buckets = opened["buckets"]
        """Caller -> tokens left."""

    def close(self) -> None:
        """Unmap the file."""
        self.env.close()

    def mark(self, name: str, transaction: lmdb.Transaction | None = None) -> int:
        """A number that was kept under a name, 0 at first."""
        if transaction is None:
            with self.env.begin() as reading:
                return self.mark(name, reading)
        kept = transaction.get(name.encode(), db=self.marks)
        return int.from_bytes(kept, "big") if kept else 0

    def set_mark(self, name: str, number: int, transaction: lmdb.Transaction) -> None:
        """Keep a number under a name."""
        transaction.put(name.encode(), number.to_bytes(8, "big"), db=self.marks)

    def items(self, database: Any, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Entries of a database whose key is above `after`, in one consistent view."""
        with self.env.begin() as reading:
            cursor = reading.cursor(db=database)
            if not cursor.set_range(after):
                return
            if after and cursor.key() == after and not cursor.next():
                return
            yield from cursor.iternext()


def _require_this_boot(folder: Path) -> None:
    """Remove what another boot left: without syncing it may be torn."""
    boot = _BOOT_ID.read_text().strip()
    mark = folder / "boot_id"
    if folder.exists() and (not mark.exists() or mark.read_text() != boot):
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    descriptor = os.open(mark, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, boot.encode())
    finally:
        os.close(descriptor)
