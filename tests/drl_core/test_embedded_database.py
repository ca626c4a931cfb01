"""The embedded database on demand: started by its first user, stopped after the last one."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from drl_core import embedded_database
from drl_core.settings import Settings
from drl_core.storage.database import DatabaseUnavailable
from tests.postgres import FastPostgres

USER = """
import sys
from drl_core.settings import Settings
from drl_core.embedded_database import database_url
print(database_url(Settings(home=sys.argv[1])), flush=True)
sys.stdin.read()
"""


def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def user(home: Path) -> subprocess.Popen[str]:
    """A process that needs the database until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", USER, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.integration
def test_users_share_one_migrated_server_which_stops_after_the_last_however_it_ends(
    tmp_path: Path,
) -> None:
    users = [user(tmp_path) for _ in range(2)]
    urls = {said(each) for each in users}
    assert len(urls) == 1
    with psycopg.connect(urls.pop()) as connection:
        assert connection.execute("SELECT count(*) FROM episode_progress").fetchone() == (0,)
    folder = tmp_path / "postgres"
    first, last = users
    first.communicate()
    time.sleep(2)
    assert embedded_database.running_url(folder) is not None, "another one uses it"
    last.kill()
    last.communicate()
    until(lambda: embedded_database.running_url(folder) is None)
    again = user(tmp_path)  # perhaps while the server is being stopped
    assert said(again).startswith("postgresql://")
    again.communicate()
    until(lambda: embedded_database.running_url(folder) is None)


@pytest.mark.integration
def test_a_running_server_is_joined_and_left_running(tmp_path: Path) -> None:
    with FastPostgres(tmp_path / "postgres") as url:
        joined = user(tmp_path)
        assert said(joined) == url
        joined.communicate()
        assert embedded_database.running_url(tmp_path / "postgres") == url


def test_a_configured_database_is_taken_as_it_is(tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path), database_url="postgresql://u:p@h/d")
    assert embedded_database.database_url(settings) == "postgresql://u:p@h/d"
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_start_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "data").mkdir(parents=True)  # and no password
    with pytest.raises(DatabaseUnavailable, match=r"keeper.log; or set DRL_DATABASE_URL"):
        embedded_database.database_url(Settings(home=str(tmp_path)))
