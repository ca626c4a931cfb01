"""A PID lock: one process at a time holds a folder, and those refused learn which one it is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class LockedByError(RuntimeError):
    """Another process holds the lock; `pid` is its process id, or `unknown`."""

    def __init__(self, pid: str) -> None:
        self.pid = pid
        super().__init__(f"locked by process {pid}")


@contextmanager
def pid_lock(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file while in this context; its owner's process id is in a `.pid` file beside it.

    Args:
        path: `<name>.lock`, in a folder that exists.
        wait_s: how long to wait for another owner to go.

    Raises:
        LockedByError: somebody else holds it still.
    """
    owner = path.with_suffix(".pid")
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        pid = owner.read_text() if owner.exists() else "unknown"
        raise LockedByError(pid) from None
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
