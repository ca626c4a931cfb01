"""Keeper of a shared embedded PostgreSQL: runs the server until its last user has ended.

A program, which `drl_core.embedded_database` starts with the folder as its argument.
"""

import fcntl
import sys
import time
from pathlib import Path

from drl_cli.local.embedded_postgres import EmbeddedPostgres
from drl_core.embedded_database import users_lock

POLL_S = 0.5


def keep(folder: Path) -> None:
    """Run the server of a folder while anybody holds its users' lock; returns when it is stopped.

    Raises:
        PostgresError: it cannot start.
    """
    server = EmbeddedPostgres(folder)
    with server:
        lock = users_lock(folder)
        while server.pid is not None:
            time.sleep(POLL_S)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            break  # who comes now waits for the lock until the server has stopped


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
