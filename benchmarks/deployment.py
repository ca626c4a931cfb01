"""A deployment that can be broken: the service with two workers, PostgreSQL, and who restarts them.

A home folder with a released model comes in; a base URL comes out. Two threads stand for the
supervision of a real deployment: what has ended is started again at once, however it ended. Workers
are started again by the service's own parent process. `kill` ends a part as `kill -9` does.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil
import psycopg

from drl_cli.local.embedded_postgres import EmbeddedPostgres
from drl_core.migrations import migrate

PATIENCE_S = 120.0
"""A bound for what hangs, not a goal."""
_LOOK_S = 0.02
KINDS = ("worker", "drainer", "database", "parent", "all")
"""What `kill` ends: a worker, the worker that drains, the postmaster, the workers' parent, all."""


class Deployment:
    """A context manager: entering starts everything, leaving stops it.

    Args:
        home: the service's home; its model store has a release.
        workers: of the service.
        ready: whether a released model is waited for.
        environ: further variables of the service.
    """

    def __init__(self, home: Path, workers: int = 2, *, ready: bool = True, **environ: str) -> None:
        self.home = home
        self.workers = workers
        self._probe = "/health/ready" if ready else "/health/live"
        self.port, self._database_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.database_url = ""
        self._environ = environ
        self._server = EmbeddedPostgres(home / "postgres", port=self._database_port)
        self._service: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._database_held = threading.Event()
        self._up = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._guarded, args=(run,), name=name)
            for name, run in (("postgres", self._keep_database), ("service", self._keep_service))
        ]

    def __enter__(self) -> "Deployment":
        try:
            self._threads[0].start()
            wait_until(lambda: self._up.is_set() or bool(self._failures))
            self._threads[1].start()
            wait_until(self.whole)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in reversed(self._threads):
            if thread.ident is not None:
                thread.join(PATIENCE_S)
        if self._failures:
            raise self._failures[0]

    @property
    def service_pid(self) -> int | None:
        """Process id of the workers' parent, while it lives."""
        return self._service.pid if self._service and self._service.poll() is None else None

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that live, oldest first."""
        return [child.pid for child in self._children() if _is_worker(child)]

    def drainer_pid(self) -> int | None:
        """The worker that holds the drainer's lock."""
        path = self.home / "state" / "drainer.lock"
        inode = str(path.stat().st_ino) if path.exists() else ""
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                return int(words[4])
        return None

    def whole(self) -> bool:
        """Whether every part lives and a request is answered."""
        if self._failures:
            raise self._failures[0]
        return (
            len(self.worker_pids()) == self.workers and self._server.pid is not None
        ) and self.answers()

    def answers(self) -> bool:
        """Whether the service takes requests."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}{self._probe}", timeout=5).status_code == 200
        return False

    def kill(self, kind: str) -> None:
        """End a part, or everything, by SIGKILL."""
        database = self._server.pid
        workers = self.worker_pids()
        pids: dict[str, list[int | None]] = {
            "worker": [*workers[:1]],
            "drainer": [self.drainer_pid() or workers[-1]],
            "database": [database],
            "parent": [self.service_pid],
            "all": [self.service_pid, *workers, database],
        }
        for pid in pids[kind]:
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def freeze_database(self) -> None:
        """Stop every process of PostgreSQL where it is: connections open, nothing answers."""
        assert self._server.pid is not None
        server = psutil.Process(self._server.pid)
        for process in (server, *server.children()):
            process.suspend()

    def hold_database(self) -> None:
        """End PostgreSQL and leave it ended: connections are refused."""
        self._database_held.set()
        assert self._server.pid is not None
        server = psutil.Process(self._server.pid)
        for process in (server, *server.children()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def release_database(self) -> None:
        """Let PostgreSQL be started again."""
        self._database_held.clear()

    def connect(self) -> "psycopg.Connection[Any]":
        """A connection to the database."""
        return psycopg.connect(self.database_url, autocommit=True, connect_timeout=5)

    def memory_bytes(self) -> int:
        """Memory that the workers have for themselves: without the file that they share."""
        return sum(child.memory_full_info().uss for child in self._children() if _is_worker(child))

    def _children(self) -> list[psutil.Process]:
        pid = self.service_pid
        if pid is None:
            return []
        try:
            return list(psutil.Process(pid).children())
        except psutil.NoSuchProcess:
            return []

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            self._failures.append(error)

    def _keep_database(self) -> None:
        try:
            while not self._stop.wait(_LOOK_S):
                if self._server.pid is None and not self._database_held.is_set():
                    self._server.stop()
                    self.database_url = self._server.start()
                    if not self._up.is_set():
                        migrate(self.database_url)
                        self._up.set()
        finally:
            self._server.stop()

    def _keep_service(self) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DRL_")}
        environ = {
            "DRL_HOME": str(self.home),
            "DRL_DATABASE_URL": self.database_url,
            "DRL_SERVING__PORT": str(self.port),
            "DRL_SERVING__WORKERS": str(self.workers),
        }
        with (self.home / "service.log").open("ab") as log:
            try:
                while not self._stop.wait(_LOOK_S):
                    if self._service is None or self._service.poll() is not None:
                        self._service = subprocess.Popen(
                            [sys.executable, "-m", "drl_serving"],
                            env=kept | environ | self._environ,
                            stdout=log,
                            stderr=log,
                        )
            finally:
                if self._service is not None:
                    self._service.terminate()
                    self._service.wait(PATIENCE_S)


def _is_worker(process: psutil.Process) -> bool:
    """Whether it lives, and is not the one that restores episodes."""
    with contextlib.suppress(psutil.NoSuchProcess):
        dead = process.status() == psutil.STATUS_ZOMBIE
        return not dead and "drl_serving.decisions.state.recovery" not in process.cmdline()
    return False


def wait_until(holds: Callable[[], bool], seconds: float = PATIENCE_S) -> float:
    """Wait; says how many seconds it took.

    Raises:
        TimeoutError: it never held.
    """
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"{seconds:g} s have passed and it does not hold")
        time.sleep(_LOOK_S)
    return time.monotonic() - began


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
