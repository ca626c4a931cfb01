"""The drainer: in order, once in effect, whoever is killed or away; a bad row stops nothing."""

import contextlib
import datetime as dt
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from drl_cli.local.embedded_postgres import EmbeddedPostgres
from drl_core.migrations import migrate
from drl_core.storage import patterns
from drl_core.storage.encryption import Keyring
from drl_core.storage.outbox import Outbox
from drl_core.storage.patterns import AttackPattern
from drl_serving.background import OUTBOX_STORES
from drl_serving.decisions.state import log_store
from drl_serving.decisions.state.log_store import DecisionRecord
from drl_serving.storage.outbox_drainer import Drainer
from tests.postgres import FastPostgres

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
PROCESS = """
import sys
from pathlib import Path
from drl_core.storage.encryption import Keyring
from drl_core.storage.outbox import Outbox
from drl_serving.background import OUTBOX_STORES
from drl_serving.storage.outbox_drainer import Drainer
folder = Path(sys.argv[1])
Drainer(Outbox(folder / "outbox.sqlite"), sys.argv[2], Keyring(folder), OUTBOX_STORES, 7).run()
"""


def decision(step: int) -> tuple[str, bytes]:
    record = DecisionRecord(
        decision_id=UUID(int=step),
        time=NOON,
        sandbox_id="s",
        episode_id="e",
        step=step,
        action=0,
        model_version="v1",
        sequence=1,
        principal="anonymous",
        record=b"{}",
    )
    return log_store.queue(record)


def pattern(step: int, attack_type: str = "worm") -> AttackPattern:
    return AttackPattern(
        sandbox_id="s",
        episode_id="e",
        step=step,
        model_version="v1",
        features=[0.5] * 30,
        action=2,
        reward=1.0,
        attack_type=attack_type,
        confidence=0.9,
        time=NOON,
        metadata={"user": "jane"},
    )


def steps(url: str, table: str = "decisions") -> list[int]:
    """Of the stored rows, in the order of the transactions that stored them."""
    query = f"SELECT step FROM {table} ORDER BY xmin::text::bigint, step"  # noqa: S608
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(query)]


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


@contextlib.contextmanager
def draining(folder: Path, url: str) -> Iterator[Drainer]:
    drainer = Drainer(
        Outbox(folder / "outbox.sqlite"), url, Keyring(folder), OUTBOX_STORES, group=7
    )
    thread = threading.Thread(target=drainer.run)
    thread.start()
    try:
        yield drainer
    finally:
        drainer.stop()
        thread.join()


@pytest.fixture
def url(postgres_url: str) -> str:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("TRUNCATE decisions, attack_patterns")
    return postgres_url


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox.sqlite")


@pytest.mark.property(43)
def test_rows_are_stored_once_in_order_and_then_forgotten(
    url: str, outbox: Outbox, tmp_path: Path
) -> None:
    outbox.append("decisions", [decision(n) for n in range(60)])
    outbox.append("patterns", [patterns.queue(patterns.seal(pattern(1), Keyring(tmp_path)))])
    outbox.append("decisions", [decision(n) for n in range(55, 100)])
    with draining(tmp_path, url) as drainer:
        wait_until(lambda: outbox.depth() == 0)
        assert drainer.leading
        outbox.append("decisions", [decision(99), decision(100)])
        wait_until(lambda: outbox.depth() == 0 and drainer.drained == 103)
    assert steps(url) == list(range(101))
    assert steps(url, "attack_patterns") == [1]
    assert (drainer.set_aside, drainer.failure, drainer.leading) == (0, None, False)


@pytest.mark.property(43)
def test_a_row_that_the_database_refuses_is_set_aside_and_stops_nothing(
    url: str, outbox: Outbox, tmp_path: Path
) -> None:
    keyring = Keyring(tmp_path)
    too_long = "x" * 20_000 + os.urandom(20_000).hex()  # for an index, and does not compress
    sealed = patterns.seal(pattern(3), keyring)
    bad = type(sealed)(**{n: getattr(sealed, n) for n in patterns.COLUMNS} | {"action": 9})
    long = type(sealed)(
        **{n: getattr(sealed, n) for n in patterns.COLUMNS} | {"attack_type": too_long}
    )
    outbox.append("decisions", [decision(0), ("garbage", b"\xc1"), decision(1)])
    outbox.append("patterns", [patterns.queue(bad), patterns.queue(long)])
    outbox.append("unheard_of", [("key", b"payload")])
    outbox.append("decisions", [decision(2)])
    with draining(tmp_path, url) as drainer:
        wait_until(lambda: outbox.depth() == 0)
    assert steps(url) == [0, 1, 2]
    letters = outbox.dead_letters()
    assert [letter.row.topic for letter in letters] == [
        "decisions",
        "patterns",
        "patterns",
        "unheard_of",
    ]
    for letter, reason in zip(
        letters, ("Validation|Decode", "attack_patterns_action", "index", "topic"), strict=True
    ):
        assert any(part in letter.reason for part in reason.split("|")), letter.reason
    assert drainer.set_aside == 4


def test_what_an_earlier_version_stored_in_clear_is_sealed(
    url: str, outbox: Outbox, tmp_path: Path
) -> None:
    patterns.upsert(url, [pattern(1)], Keyring(tmp_path))
    with psycopg.connect(url) as connection:
        connection.execute(
            "UPDATE attack_patterns SET sealed = NULL, key_id = NULL, metadata = '{\"a\": 1}'"
        )

    def sealed() -> bool:
        with psycopg.connect(url) as connection:
            return connection.execute(
                "SELECT metadata IS NULL AND sealed IS NOT NULL FROM attack_patterns"
            ).fetchone() == (True,)

    with draining(tmp_path, url):
        wait_until(sealed)


@pytest.mark.property(43)
def test_while_the_database_is_away_rows_wait_and_are_stored_in_order_when_it_is_back(
    tmp_path: Path,
) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite")
    server = FastPostgres(tmp_path / "postgres", port=_free_port())
    url = server.start()
    migrate(url)
    with draining(tmp_path, url) as drainer:
        for first in (0, 50):
            outbox.append("decisions", [decision(n) for n in range(first, first + 25)])
            wait_until(lambda: outbox.depth() == 0)
            server.stop()
            outbox.append("decisions", [decision(n) for n in range(first + 25, first + 50)])
            wait_until(lambda: drainer.failure is not None)
            assert outbox.depth() == 25
            assert server.start() == url
            wait_until(lambda: outbox.depth() == 0 and drainer.failure is None)
    try:
        assert steps(url) == list(range(100))
    finally:
        server.stop()


@pytest.mark.property(43)
@pytest.mark.integration
def test_kill_9_of_drainer_and_database_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite")
    server = EmbeddedPostgres(tmp_path / "postgres", port=_free_port())
    url = server.start()
    migrate(url)
    acknowledged = 0
    try:
        for round_ in range(6):
            command = [sys.executable, "-c", PROCESS, str(tmp_path), url]
            two = [subprocess.Popen(command) for _ in range(2)]  # one drains, one waits
            for _ in range(10):
                rows = [decision(n) for n in range(acknowledged, acknowledged + 30)]
                outbox.append("decisions", rows)
                acknowledged += 30
            before = outbox.depth()
            wait_until(lambda before=before: outbox.depth() < before - 20)  # type: ignore[misc]
            if round_ % 2 and server.pid:
                os.kill(server.pid, signal.SIGKILL)
            for process in two:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            if round_ % 2:
                server.stop()
                assert server.start() == url
            done = steps(url)
            assert done == list(range(len(done))), "in order, none lost, none twice"
            waiting = [int(UUID(row.key)) for row in outbox.peek(10**6)]
            assert set(done) | set(waiting) == set(range(acknowledged))
        with draining(tmp_path, url):
            wait_until(lambda: outbox.depth() == 0)
        assert steps(url) == list(range(acknowledged))
    finally:
        server.stop()


def test_another_process_takes_over_when_the_one_that_drains_is_killed(
    url: str, outbox: Outbox, tmp_path: Path
) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), url])
    try:
        outbox.append("decisions", [decision(0)])
        wait_until(lambda: outbox.depth() == 0)
        with draining(tmp_path, url) as drainer:
            outbox.append("decisions", [decision(1)])
            wait_until(lambda: outbox.depth() == 0)
            assert not drainer.leading
            process.kill()
            process.wait()
            outbox.append("decisions", [decision(2)])
            wait_until(lambda: drainer.drained == 1)
    finally:
        process.kill()
        process.wait()
    assert steps(url) == [0, 1, 2]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
