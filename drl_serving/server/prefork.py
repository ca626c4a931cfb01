"""Pre-fork server: workers on one port, forked from a process that has imported the application.

So the workers share what was imported, and start as soon as it is. The parent needs none of it any
more: it becomes `drl_serving.server.supervisor` (exec), which replaces a worker that ended by one
that imports for itself.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from drl_core.processes import end_with_parent
from drl_serving.server import supervisor

BACKLOG = 2048
_LATER = 10
"""Niceness of what is done beside the workers' start."""
_M_ARENA_MAX = -8


def listen(host: str, port: int) -> socket.socket:
    """The socket that all workers accept from.

    Raises:
        OSError: the port cannot be had.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(BACKLOG)
    return shared(listening)


def shared(listening: socket.socket) -> socket.socket:
    """A socket that is to be accepted from by several processes.

    A worker that comes second to a connection must not wait for the next one, even for a moment.
    """
    listening.setblocking(False)
    listening.set_inheritable(True)
    return listening


def run(work: Callable[[], None], count: int, another: list[str], beside: list[str]) -> NoReturn:
    """Do `work` in `count` forked processes, and become their supervisor.

    Args:
        work: what a worker does; it ends when the process is told to.
        count: how many.
        another: a command that does the same work, for a worker that takes another's place. It is
            given the supervisor's process id, and inherits what may be inherited.
        beside: a command that is run once, while the workers are.
    """
    limit_arenas()
    gc.freeze()  # what was imported is not looked at again, so its pages stay shared
    signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.WATCHED)
    workers = [_fork(work) for _ in range(count)]
    _beside = subprocess.Popen(beside, preexec_fn=_later)  # held: it runs on after the exec
    program = [sys.executable, "-I", "-S", str(Path(supervisor.__file__))]
    os.execv(program[0], [*program, json.dumps(workers), *another, str(os.getpid())])  # noqa: S606


def limit_arenas() -> None:
    """Let malloc have two arenas instead of one for each thread: less memory is held."""
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _later() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, supervisor.WATCHED)
    os.nice(_LATER)


def _fork(work: Callable[[], None]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        end_with_parent(parent)
        gc.enable()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, supervisor.WATCHED)
        work()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(status)
