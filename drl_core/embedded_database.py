"""Embedded database on demand: one server a home folder, shared by all processes that need it.

For commands that run without `drl up`, such as Dagster's own. The first process that needs the
database starts the server, in a keeper process of its own; later ones join it, and so does whoever
comes while `drl up` runs its own. Every user holds a shared file lock as long as it lives, which
the kernel releases however it ends; the keeper stops the server when it gets that lock for itself.
"""

import fcntl
import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import psycopg
from filelock import FileLock

from drl_core.settings import Settings
from drl_core.storage.database import DatabaseUnavailable

KEEPER = "drl_cli.local.postgres_keeper"
"""The program that runs the server; it belongs to a package above this one."""

START_LIMIT_S = 90.0


def database_url(settings: Settings) -> str:
    """The configured database, or the embedded one, started where needed and migrated.

    Raises:
        DatabaseUnavailable: the embedded server did not start; the message names its log.
    """
    from drl_core.migrations import migrate  # alembic and SQLAlchemy: 0.5 s that `drl -h` spares

    if settings.database_url is not None:
        return settings.database_url
    folder = settings.home_path / "postgres"
    folder.mkdir(parents=True, exist_ok=True)
    _hold(folder)
    url = running_url(folder)
    if url is None:
        with FileLock(folder / "start.lock"):
            url = running_url(folder) or _start(folder)
    migrate(url)
    return url


def running_url(folder: Path) -> str | None:
    """The URL of the server of a folder, None where none answers."""
    try:
        url = (folder / "url").read_text()
        psycopg.connect(url, connect_timeout=5).close()
    except (FileNotFoundError, psycopg.OperationalError):
        return None
    return url


def users_lock(folder: Path) -> int:
    """Open the file that users of the server hold shared, and its keeper alone to stop it."""
    return os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)


@functools.cache
def _hold(folder: Path) -> None:
    """Keep the server of a folder running until this process ends."""
    fcntl.flock(users_lock(folder), fcntl.LOCK_SH)


def _start(folder: Path) -> str:
    log = folder / "keeper.log"
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-m", KEEPER, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # it outlives this process where others use the server
        )
    deadline = time.monotonic() + START_LIMIT_S
    while (url := running_url(folder)) is None:
        if keeper.poll() is not None or time.monotonic() > deadline:
            raise DatabaseUnavailable(
                f"the embedded PostgreSQL did not start, see {log}; or set DRL_DATABASE_URL to a "
                "PostgreSQL 15 or later with pgvector"
            )
        time.sleep(0.05)
    return url
