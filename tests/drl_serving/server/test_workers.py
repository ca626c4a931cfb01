"""Workers and their supervisor: what ends is replaced, and all of it ends together."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

WORK = """
import signal, sys, time
from drl_serving.server import prefork as workers

def work():
    {work}

workers.run(work, 2, [sys.executable, "-c", "import time; time.sleep(60)"], ["true"])
"""
SLEEP = "time.sleep(60)"


@contextmanager
def supervised(work: str) -> Iterator[psutil.Popen]:
    """Two workers and their supervisor."""
    with psutil.Popen([sys.executable, "-c", WORK.format(work=work)], stdout=subprocess.PIPE) as up:
        yield up
        if up.is_running():
            up.kill()


def workers(up: psutil.Popen) -> list[psutil.Process]:
    living = []
    for one in up.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended since it was listed
            if one.status() != psutil.STATUS_ZOMBIE:
                living.append(one)
    return living


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def is_supervisor(up: psutil.Popen) -> bool:
    """Whether the process has given up what it imported for the workers."""
    return any("supervisor" in word for word in up.cmdline()) and len(workers(up)) == 2


def test_a_killed_worker_is_replaced_and_told_of() -> None:
    with supervised(SLEEP) as up:
        wait_until(lambda: is_supervisor(up))
        first, second = workers(up)
        first.kill()
        wait_until(lambda: len(workers(up)) == 2 and first not in workers(up))
        assert second in workers(up)
        up.terminate()
        assert up.wait(30) == 0
        told = up.stdout.read()
    assert f'"worker": {first.pid}, "status": -9'.encode() in told


def test_a_signal_stops_the_workers_whenever_it_comes() -> None:
    for moment in (0.0, 0.01, 0.02, 0.03, 0.05):
        with supervised(SLEEP) as up:
            wait_until(lambda: len(workers(up)) == 2)
            time.sleep(moment)  # before, while and after it becomes the supervisor
            children = workers(up)
            up.send_signal(signal.SIGINT)
            assert up.wait(30) == 0
            assert not [one for one in children if one.is_running()]


def test_what_was_not_the_supervisor_s_own_is_released() -> None:
    with supervised(SLEEP) as up:
        wait_until(lambda: is_supervisor(up))
        assert up.memory_full_info().uss < 10_000_000


def test_workers_end_with_a_supervisor_that_is_killed() -> None:
    with supervised(SLEEP) as up:
        wait_until(lambda: is_supervisor(up))
        forked = workers(up)
        up.kill()
        up.wait(30)
        psutil.wait_procs(forked, 30)
        assert not [one for one in forked if one.is_running()]


def test_where_no_worker_can_start_the_exit_status_is_its() -> None:
    with supervised("sys.exit(3)") as up:
        assert up.wait(30) == 3


@pytest.mark.integration
@pytest.mark.property(43)
def test_a_worker_that_took_another_s_place_answers_and_ends_with_its_supervisor(
    publisher: Any, start_service: Any
) -> None:
    publisher.publish("v1")
    with start_service(Path(publisher.settings.home), DRL_SERVING__WORKERS="1") as service:
        up = psutil.Process(service.process.pid)
        (first,) = answering(up)
        first.kill()
        service.wait_until(service.answers)
        (second,) = answering(up)
        assert second.pid != first.pid
        up.kill()
        assert second.wait(30) is None


def answering(up: psutil.Process) -> list[psutil.Process]:
    return [one for one in up.children() if "recovery" not in " ".join(one.cmdline())]


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "drl_serving"],
            env=os.environ | {"DRL_HOME": str(tmp_path), "DRL_SERVING__PORT": str(port)},
            capture_output=True,
            text=True,
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: serving.port: ")
    assert ended.stderr.count("\n") == 1
