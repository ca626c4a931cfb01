"""`drl up`: start the database, migrate it, make the keys, and run the Procfile's processes.

Settings go in; running processes come out, and none is left at the end, whether that is Ctrl-C, a
signal, or the exit of one process. `up` is the command; `drl demo` puts the same parts (`database`,
`environment`, `processes`) together with steps of its own in between.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import psutil

from drl_cli.local.embedded_postgres import EmbeddedPostgres
from drl_cli.local.pid_lock import LockedByError, pid_lock
from drl_cli.local.supervisor import UnknownProcess, commands, marked, send
from drl_core.files import write_atomically
from drl_core.migrations import migrate
from drl_core.processes import die_with_parent
from drl_core.release.signing_keys import signing_key
from drl_core.settings import Settings
from drl_core.storage.database import sqlalchemy_url

DATABASE_WAIT_S = 300.0
READY_WAIT_S = 180.0
STOP_WAIT_S = 25.0
INSTANCE_FILE = "deploy/dagster.yaml"

Say = Callable[[str], None]


class UpError(RuntimeError):
    """The processes cannot start or did not keep running; the message says what to change."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def up(settings: Settings, names: Sequence[str] = (), on_ready: Say | None = None) -> int:
    """Run everything until a signal arrives or a process ends.

    Args:
        settings: the configuration; `home`, `database_url` and the ports are used.
        names: of the Procfile; all by default.
        on_ready: called with the database's URL when every process answers.

    Returns:
        The exit status: 130 or 143 after SIGINT or SIGTERM, that of the process that ended first
        (1 where it was 0) otherwise.

    Raises:
        UpError: already running, a port is taken, or a process did not become ready.
    """
    try:
        with stop_on_signals(), only_one(settings):
            check_ports(settings, names)
            with (
                database(settings) as url,
                processes(settings, environment(settings, url), names) as running,
            ):
                if on_ready is not None:
                    on_ready(url)
                return running.wait()
    except Stopped as stopped:
        return 128 + stopped.signum


class Stopped(BaseException):
    """A signal asked to stop; not an error, so only the outermost caller catches it."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise `Stopped` at the first SIGINT, SIGTERM or SIGHUP; ignore later ones."""
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(signum: int, _: FrameType | None) -> None:
        for each in watched:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signum)

    before = {each: signal.signal(each, stop) for each in watched}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Hold the home folder's PID lock: a second `drl up` on the same state is refused.

    Raises:
        UpError: naming the process that holds it.
    """
    home = settings.home_path
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(pid_lock(home / "up.lock"))
        except LockedByError as error:
            raise UpError(
                f"drl up is already running on {home} (process {error.pid}): stop it, or set "
                "DRL_HOME"
            ) from None
        yield


@contextmanager
def database(settings: Settings, say: Say = _say, wait_s: float = DATABASE_WAIT_S) -> Iterator[str]:
    """A migrated database: the one of `database_url`, or the embedded one while in this context.

    Args:
        settings: `database_url` and `home`.
        say: gets a line if the configured database is not available at first.
        wait_s: how long to wait for it.

    Raises:
        DatabaseUnavailable: the configured database did not answer in that time.
        MigrationError: it lacks pgvector or a privilege.
        PostgresError: the embedded one cannot run.
        UpError: the URL is not one of PostgreSQL.
    """
    url = settings.database_url
    if url is None:
        with EmbeddedPostgres(settings.home_path / "postgres") as embedded:
            migrate(embedded)
            yield embedded
        return
    if not url.startswith(("postgresql://", "postgres://")):
        raise UpError("database_url: postgresql://USER:PASSWORD@HOST/DATABASE is expected")
    migrate(
        url,
        wait_s,
        lambda reason: say(
            f"DRL_DATABASE_URL does not answer, waiting up to {wait_s:g} s: {reason}"
        ),
    )
    yield url


def environment(
    settings: Settings, database_url: str, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Environment variables of the processes: state, configuration, database and programs.

    Raises:
        UpError: the project's folder is not found.
    """
    root = project_root(environ)
    signing_key(settings.keys_path)  # the service needs the public half at its start
    dagster_home = settings.home_path / "dagster"  # Dagster writes into it: not the checkout
    dagster_home.mkdir(parents=True, exist_ok=True)
    write_atomically(dagster_home / "dagster.yaml", (root / INSTANCE_FILE).read_bytes())
    return {
        **environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "DRL_ENV": settings.environment,
        "DRL_CONFIG": str(Path(environ.get("DRL_CONFIG", "config")).resolve()),
        "DRL_HOME": str(settings.home_path),
        "DRL_DATABASE_URL": database_url,
        "DRL_UI_PORT": str(settings.ui_port),
        "DRL_SERVING__PORT": str(settings.serving.port),
        "DRL_DAGSTER_DATABASE_URL": sqlalchemy_url(database_url),
        "DRL_DAGSTER_STORAGE": str(dagster_home / "storage"),
        "DRL_PROJECT": str(root),
        "DAGSTER_HOME": str(dagster_home),
    }


def project_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of Procfile and deploy/dagster.yaml: DRL_PROJECT, here or above, or the checkout.

    Raises:
        UpError: none of them has both.
    """
    here = Path.cwd()
    given = [Path(environ["DRL_PROJECT"])] if environ.get("DRL_PROJECT") else []
    for folder in (*given, here, *here.parents, Path(__file__).resolve().parents[2]):
        if all((folder / name).is_file() for name in ("Procfile", INSTANCE_FILE)):
            return folder.resolve()
    raise UpError(f"no Procfile and {INSTANCE_FILE} here or above: set DRL_PROJECT to their folder")


class RunningProcesses:
    """The started processes, as their supervisor sees them."""

    def __init__(self, supervisor: subprocess.Popen[bytes]) -> None:
        self._supervisor = supervisor

    @property
    def ended(self) -> int | None:
        """Exit status once a process has ended (1 where its own was 0), else None."""
        status = self._supervisor.poll()
        return None if status is None else (status if status > 0 else 1)

    def wait(self) -> int:
        """Wait until a process ends, which stops the others; gives `ended`."""
        while (status := self.ended) is None:
            time.sleep(0.2)  # a blocking wait may be restarted by a library's signal handler
        return status


@contextmanager
def processes(
    settings: Settings,
    env: Mapping[str, str],
    names: Sequence[str] = (),
    *,
    procfile: Path | None = None,
    ready: Mapping[str, str] | None = None,
    wait_s: float = READY_WAIT_S,
) -> Iterator[RunningProcesses]:
    """Run entries of the Procfile in the background while in this context, their output prefixed.

    Args:
        settings: says the ports, which must be free.
        env: their environment, from `environment`.
        names: which entries; all by default.
        procfile: the project's by default.
        ready: by entry, the URL that answers 2xx when it is ready; the UI's and the service's
            by default. Entries without one are not waited for.
        wait_s: how long to wait for all of them.

    Raises:
        UpError: no such entry, a port is taken, one ended or did not answer in time.
    """
    procfile = procfile or project_root(env) / "Procfile"
    try:
        chosen = list(commands(procfile, names))
    except UnknownProcess as error:
        raise UpError(str(error)) from None
    check_ports(settings, chosen)
    ready = _ready_urls(settings) if ready is None else ready
    mark = uuid.uuid4().hex
    with ExitStack() as stack:
        stack.callback(_end_marked, mark)
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "drl_cli.local.supervisor", str(procfile), mark, *chosen],
            cwd=procfile.parent,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal reaches them through us, once
            preexec_fn=die_with_parent(),
        )
        stack.callback(_end, supervisor)
        running = RunningProcesses(supervisor)
        _wait_ready({name: ready[name] for name in chosen if name in ready}, running, wait_s)
        yield running


def check_ports(settings: Settings, names: Sequence[str] = ()) -> None:
    """Check that the ports of the named Procfile entries (all by default) are free.

    Raises:
        UpError: one is taken; names the setting that changes it.
    """
    wanted = {
        "ui": ("127.0.0.1", settings.ui_port, "DRL_UI_PORT"),
        "service": (settings.serving.host, settings.serving.port, "DRL_SERVING__PORT"),
    }
    for name in wanted.keys() & set(names) if names else wanted:
        host, port, variable = wanted[name]
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise UpError(
                    f"{name}: port {port} of {host} cannot be used ({error.strerror}): "
                    f"set {variable} to another"
                ) from None


def _ready_urls(settings: Settings) -> dict[str, str]:
    host = settings.serving.host
    local = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104
    return {
        "ui": f"http://127.0.0.1:{settings.ui_port}/server_info",
        "service": f"http://{local}:{settings.serving.port}/health/live",
    }


def _wait_ready(urls: Mapping[str, str], running: RunningProcesses, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    waiting = dict(urls)
    while waiting:
        if running.ended is not None:
            raise UpError(f"a process ended before all were ready (exit status {running.ended})")
        waiting = {name: url for name, url in waiting.items() if not _answers(url)}
        if waiting and time.monotonic() > deadline:
            raise UpError(f"not ready after {wait_s:g} s: {', '.join(waiting)}; see the log above")
        time.sleep(0.1 if waiting else 0)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  (URLs of our own)
            return bool(200 <= answer.status < 300)
    except (urllib.error.URLError, OSError):
        return False


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the supervisor, which stops its processes and kills those that hang."""
    if supervisor.poll() is None:
        supervisor.terminate()
        try:
            supervisor.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()


def _end_marked(mark: str) -> None:
    """Kill what is left where the supervisor itself was killed."""
    left = marked(mark)
    send(left, signal.SIGKILL)
    psutil.wait_procs(left, timeout=STOP_WAIT_S)
