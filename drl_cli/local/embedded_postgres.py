"""The embedded PostgreSQL: one server over the binaries of a wheel, for machines without their own.

A data folder goes in, a `postgresql://` URL comes out. The server listens on a free port of the
loopback interface, asks for a generated password (SCRAM), keeps page checksums, and ends with the
process that started it, however that one ends (PR_SET_PDEATHSIG). Started by root it runs as
`nobody`.
"""

import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from tenacity import Retrying, retry_if_exception_type, wait_fixed

from drl_cli.local import postgres_wheel
from drl_cli.local.pid_lock import LockedByError, pid_lock
from drl_cli.local.postgres_wheel import HERE, PostgresError
from drl_core.files import write_atomically
from drl_core.processes import die_with_parent

_USER = _DATABASE = "drl"
_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 30.0
_MAX_LOG_BYTES = 10 << 20


class EmbeddedPostgres:
    """A server and its folder. A context manager: entering starts it and gives its URL.

    Args:
        folder: holds `data/`, `password`, `url` and `server.log`; made where missing.
        port: of the loopback interface; a free one by default.
        wait_s: how long to wait for another owner of the folder to go, and for the server to start.
    """

    initdb_options = (
        *("--auth=scram-sha-256", "--data-checksums", "--no-locale", "--encoding=UTF8"),
        *("--no-instructions", f"--username={_USER}"),
    )
    server_options = (
        *("-clisten_addresses=127.0.0.1", "-cunix_socket_directories="),
        "-cpassword_encryption=scram-sha-256",
    )

    def __init__(
        self, folder: Path, *, port: int | None = None, wait_s: float = _START_LIMIT_S
    ) -> None:
        self.folder = folder.absolute()
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"
        self._port = port
        self._wait_s = wait_s
        self._process: subprocess.Popen[bytes] | None = None
        self._cleanup = contextlib.ExitStack()

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> str:
        """Start the server, and make its data folder on first use.

        Returns:
            `postgresql://USER:PASSWORD@127.0.0.1:PORT/drl`.

        Raises:
            PostgresError: it does not start; says why.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        with contextlib.ExitStack() as undo:
            try:
                undo.enter_context(pid_lock(self.folder / "owner.lock", self._wait_s))
            except LockedByError as error:
                raise PostgresError(f"{self.folder} is in use by process {error.pid}") from None
            undo.callback(self._end_process)
            programs = postgres_wheel.find_programs()
            password = self._password()
            if not self.data.exists():
                self._initialise(programs, password)
            self._wait_for_old_server()
            url = self._run(programs, password)
            write_atomically(self.folder / "url", url.encode(), mode=0o600)  # for who joins
            self._cleanup = undo.pop_all()
            return url

    def stop(self) -> None:
        """Stop the server cleanly, closing open connections; does nothing where none runs."""
        self._cleanup.close()

    def _password(self) -> str:
        path = self.folder / "password"
        if not path.exists():
            if self.data.exists():
                raise PostgresError(f"{path} is missing: without it {self.data} cannot be opened")
            write_atomically(path, secrets.token_urlsafe(24).encode(), mode=0o600)
        return path.read_text()

    def _initialise(self, programs: Path, password: str) -> None:
        """initdb in a temporary folder, then rename: the data folder is whole or not there."""
        for leftover in self.folder.glob("new-*"):
            shutil.rmtree(leftover)
        fresh = Path(tempfile.mkdtemp(prefix="new-", dir=self.folder))
        postgres_wheel.initdb(programs, fresh, self.initdb_options, password)
        fresh.rename(self.data)

    def _wait_for_old_server(self) -> None:
        """Wait while an earlier server of this folder closes, then remove the PID file it left.

        All its processes work in the data folder; the PID file may name any program by now.
        """
        data = str(self.data.resolve())
        earlier = [
            process
            for process in psutil.process_iter(["name", "cwd"])
            if (process.info["name"], process.info["cwd"]) == ("postgres", data)
        ]
        _, alive = psutil.wait_procs(earlier, timeout=self._wait_s)
        if alive:
            raise PostgresError(f"{data} is in use by PostgreSQL, process {alive[0].pid}")
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _run(self, programs: Path, password: str) -> str:
        """Start the server's process; gives the URL once it answers, unless it ends instead."""
        port = self._port or _free_port()
        url = f"postgresql://{_USER}:{password}@127.0.0.1:{port}"
        if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            log_start = log.tell()
            self._process = subprocess.Popen(
                [programs / "postgres", "-D", HERE, f"-cport={port}", *self.server_options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is its owner's business
                preexec_fn=die_with_parent(signal.SIGINT),
                **postgres_wheel.run_options(self.data),
            )
        until_ready = Retrying(
            retry=retry_if_exception_type(psycopg.OperationalError),
            stop=lambda tried: self.pid is None or (tried.seconds_since_start or 0) > self._wait_s,
            wait=wait_fixed(0.03),
            reraise=True,
        )
        try:
            until_ready(_create_database, f"{url}/postgres")
        except psycopg.OperationalError as error:
            said = self.log.read_bytes()[log_start:].decode(errors="replace").strip()
            if "Address already in use" in said and self._port is None:
                return self._run(programs, password)  # the port was taken since it was chosen
            message = f"PostgreSQL did not start, see {self.log}: {said or error}"
            raise PostgresError(message) from None
        return f"{url}/{_DATABASE}"

    def _end_process(self) -> None:
        """Fast shutdown; immediate shutdown, then SIGKILL, where it takes too long."""
        process, self._process = self._process, None
        for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if process is None or process.poll() is not None:
                break
            process.send_signal(signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_LIMIT_S)


def _create_database(url: str) -> None:
    with psycopg.connect(url, connect_timeout=5, autocommit=True) as connection:
        known = connection.execute("SELECT datname FROM pg_database").fetchall()
        if (_DATABASE,) not in known:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_DATABASE)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
