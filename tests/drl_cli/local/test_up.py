"""`drl up`: real processes, a real database, and nothing left of them afterwards."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import psycopg
import pytest

from drl_cli.local.up import UpError, database, environment, processes, project_root
from drl_core.settings import Settings
from tests.postgres import FastPostgres

REPOSITORY = Path(__file__).resolve().parents[3]

WEB = """
import http.server, subprocess, sys
child = subprocess.Popen(["sleep", "600"], start_new_session=True)  # leaves the process group
print("serving with", child.pid, flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler
    ).serve_forever()
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("stubborn", flush=True)
time.sleep(600)
"""
UP = """
import sys
from drl_cli.local.up import UpError, up
from drl_core.settings import load
try:
    sys.exit(up(load(), sys.argv[1:], on_ready=lambda url: print("READY", url, flush=True)))
except UpError as error:
    sys.exit(f"error: {error}")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def processes_about(folder: Path) -> list[str]:
    """Living processes that work in a folder or were given it in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            environ = process.environ()
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            cwd, command = process.cwd(), process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if environ.get("DRL_HOME", "").startswith(str(folder)) or cwd.startswith(str(folder)):
            found.append(f"{process.pid} {command}")
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with a small Procfile."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "deploy").mkdir()
    for name in ("deploy/dagster.yaml", "workspace.yaml"):
        shutil.copy(REPOSITORY / name, root / name)
    (root / "server_info").write_text("the page that tells that the UI is ready")
    (root / "web.py").write_text(WEB)
    (root / "stubborn.py").write_text(STUBBORN)
    (root / "Procfile").write_text(
        f"ui: {sys.executable} web.py $DRL_UI_PORT\n"
        f"stubborn: {sys.executable} stubborn.py\n"
        "short: sleep 1; exit 7\n"
        "done: sleep 1\n"
    )
    return root


@pytest.fixture
def settings(project: Path) -> Settings:
    return Settings(home=str(project / ".drl"), ui_port=free_port())


class Up:
    """`drl up` as a process, with what it says."""

    def __init__(self, project: Path, *names: str, **variables: str) -> None:
        self.log = project / f"up-{time.monotonic_ns()}.log"
        env = {
            key: value for key, value in os.environ.items() if not key.startswith(("DRL_", "DAGS"))
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", UP, *names],
                cwd=project,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**env, "DRL_HOME": str(project / ".drl"), **variables},
                start_new_session=True,
            )

    def said(self) -> str:
        return self.log.read_text()

    def until_said(self, text: str) -> None:
        until(lambda: text in self.said() or self.process.poll() is not None)
        assert text in self.said(), self.said()

    def wait(self) -> int:
        return self.process.wait(60)


@pytest.fixture
def start(project: Path, settings: Settings) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def make(*names: str, **variables: str) -> Up:
        up = Up(project, *names, **{"DRL_UI_PORT": str(settings.ui_port), **variables})
        started.append(up)
        return up

    yield make
    for up in started:
        up.process.kill()
        up.process.wait()
    until(lambda: not processes_about(project))


def test_a_project_is_found_from_below_and_from_anywhere(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    below = project / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert project_root({}) == project
    monkeypatch.chdir(tmp_path)
    assert project_root({"DRL_PROJECT": str(project)}) == project
    assert project_root({}) == REPOSITORY


def test_the_environment_names_state_database_and_programs(
    settings: Settings, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    env = environment(settings, "postgresql://u:p@h/d", {"PATH": "/bin", "DRL_X": "kept"})
    assert env["DRL_HOME"] == str(project / ".drl")
    assert env["DRL_DATABASE_URL"] == "postgresql://u:p@h/d"
    assert env["DRL_DAGSTER_DATABASE_URL"] == "postgresql+psycopg2://u:p@h/d"
    assert env["DRL_PROJECT"] == str(project)
    assert env["DAGSTER_HOME"] == str(project / ".drl" / "dagster")
    assert (project / ".drl" / "dagster" / "dagster.yaml").is_file()
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert env["DRL_X"] == "kept"
    assert list((project / ".drl" / "keys" / "trusted").glob("*.pub"))


@pytest.mark.integration
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_everything(
    start: Callable[..., Up], project: Path, signum: int, status: int
) -> None:
    up = start("ui", "stubborn")
    up.until_said("READY")
    assert len(processes_about(project)) >= 5
    up.process.send_signal(signum)
    up.process.send_signal(signum)  # an impatient second one does not cut the clean-up short
    assert up.wait() == status
    assert processes_about(project) == []
    assert " ui " in up.said(), "output carries the process's name"


@pytest.mark.integration
def test_a_killed_up_leaves_nothing_running(start: Callable[..., Up], project: Path) -> None:
    up = start("stubborn")
    up.until_said("stubborn")
    up.until_said("READY")
    up.process.kill()
    until(lambda: not processes_about(project))


@pytest.mark.integration
@pytest.mark.parametrize(("name", "status"), [("short", 7), ("done", 1)])
def test_when_one_process_ends_the_others_stop_and_the_status_says_so(
    start: Callable[..., Up], project: Path, name: str, status: int
) -> None:
    up = start("ui", name)
    assert up.wait() == status
    assert processes_about(project) == []


@pytest.mark.integration
def test_a_second_up_names_the_first(start: Callable[..., Up]) -> None:
    first = start("ui")
    first.until_said("READY")
    second = start("ui", DRL_UI_PORT=str(free_port()))
    assert second.wait() == 1
    assert "already running on" in second.said()
    assert f"process {first.process.pid}" in second.said()
    assert first.process.poll() is None


@pytest.mark.integration
def test_a_taken_port_is_named_with_its_setting_before_anything_starts(
    start: Callable[..., Up], settings: Settings, project: Path
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.ui_port))
        other.listen()
        up = start("ui")
        assert up.wait() == 1
    assert f"port {settings.ui_port}" in up.said()
    assert "DRL_UI_PORT" in up.said()
    assert "Traceback" not in up.said()
    assert not (project / ".drl" / "postgres").exists()


@pytest.mark.integration
def test_a_given_database_that_is_down_at_start_is_waited_for(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    port = free_port()
    server = FastPostgres(tmp_path / "postgres", port=port)
    url = server.start()
    server.stop()
    up = start("ui", DRL_DATABASE_URL=url)
    up.until_said("DRL_DATABASE_URL does not answer, waiting")
    with FastPostgres(tmp_path / "postgres", port=port):
        up.until_said(f"READY {url}")
        up.process.terminate()
        assert up.wait() == 143


def test_the_embedded_database_is_migrated_and_stops_with_its_context(settings: Settings) -> None:
    with database(settings) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM attack_patterns").fetchone() == (0,)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def test_a_url_of_another_database_is_refused_by_field(settings: Settings) -> None:
    other = msgspec.structs.replace(settings, database_url="sqlite:///x.db")
    with pytest.raises(UpError, match="database_url"), database(other):
        pass


def test_steps_can_run_while_the_processes_do(
    settings: Settings, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    env = environment(settings, "postgresql://unused")
    with processes(settings, env, ["ui"]) as running:
        assert running.ended is None
        with socket.create_connection(("127.0.0.1", settings.ui_port), 5):
            pass
    assert processes_about(project) == []


def test_an_unknown_process_is_named(settings: Settings, project: Path) -> None:
    env = {**os.environ, "DRL_PROJECT": str(project)}
    with pytest.raises(UpError, match="has no nonsense"), processes(settings, env, ["nonsense"]):
        pass


def test_a_process_that_ends_before_it_is_ready_is_an_error(
    settings: Settings, project: Path
) -> None:
    env = {**os.environ, "DRL_PROJECT": str(project), "DRL_HOME": str(project)}
    ready = {"short": f"http://127.0.0.1:{free_port()}/"}
    with (
        pytest.raises(UpError, match="exit status 7"),
        processes(settings, env, ["short"], ready=ready),
    ):
        pass


@pytest.mark.integration
def test_dagsters_daemon_and_ui_run_on_the_embedded_database_and_stop_whole(
    start: Callable[..., Up], project: Path
) -> None:
    (project / "definitions.py").write_text("import dagster as dg\n\ndefs = dg.Definitions()\n")
    (project / "workspace.yaml").write_text("load_from:\n  - python_file: definitions.py\n")
    shutil.copy(REPOSITORY / "Procfile", project)
    before = {path.name for path in project.iterdir()}
    up = start("daemon", "ui")
    up.until_said("READY")
    url = next(line.split()[1] for line in up.said().splitlines() if line.startswith("READY"))

    def heartbeat() -> bool:
        with psycopg.connect(url) as connection:
            row = connection.execute("SELECT count(*) FROM daemon_heartbeats").fetchone()
            return row is not None and row[0] > 0

    until(heartbeat)
    up.process.send_signal(signal.SIGINT)
    assert up.wait() == 130
    assert processes_about(project) == []
    left = {path.name for path in project.iterdir()} - before - {"__pycache__", up.log.name}
    assert left == {".drl"}, "state belongs below DRL_HOME"


def test_ctrl_c_ends_the_wait_though_system_calls_are_restarted() -> None:
    """A library that takes the signal may have system calls restarted: no blocking wait then."""
    script = """
import signal, subprocess
from drl_cli.local.up import RunningProcesses, Stopped, stop_on_signals
child = subprocess.Popen(["sleep", "60"])
try:
    with stop_on_signals():
        signal.siginterrupt(signal.SIGINT, False)
        print("ready", flush=True)
        RunningProcesses(child).wait()
except Stopped as stopped:
    print("stopped", stopped.signum)
finally:
    child.kill()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        try:
            out, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert out == f"stopped {signal.SIGINT.value}\n"
