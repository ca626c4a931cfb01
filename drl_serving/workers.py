"""Keeps worker processes alive on one port: they are forked from a parent that has imported all.

So the workers share the memory of what was imported, and one that died is back in a moment. The
parent has no threads, and does nothing but wait for its children: whatever ends one, another is
forked in its place, until the parent is told to stop.
"""

import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType

import structlog

from drl_core.processes import end_with_parent

GRACE_S = 15
"""How long workers may take to end before they are killed."""
BACKLOG = 2048
_BRIEF_S = 1.0
"""A worker that lived shorter is not forked again at once."""
_M_ARENA_MAX = -8
_log = structlog.wrap_logger(  # of the parent: no queue, since a thread must not be forked
    structlog.PrintLogger(),
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.JSONRenderer(),
    ],
)


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
    listening.set_inheritable(True)
    return listening


class Supervisor:
    """Runs `work` in `count` forked processes until SIGTERM or SIGINT.

    Args:
        work: what a worker does; it ends when the process is told to.
        count: how many.
        beside: a command that is run once, while the workers are.
    """

    def __init__(self, work: Callable[[], None], count: int, beside: list[str]) -> None:
        self._work = work
        self._count = count
        self._beside = beside
        self._workers: dict[int, float] = {}
        self._stopping = False

    def run(self) -> int:
        """Supervise; gives the exit status, that of the last worker where none could start."""
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)  # not one for each thread: less memory is held
        gc.collect()
        gc.freeze()  # what was imported is not looked at again, so its pages stay shared
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._stop)
        signal.signal(signal.SIGALRM, self._kill)
        subprocess.Popen(self._beside)
        for _ in range(self._count):
            self._fork()
        status = 0
        while self._workers:
            pid, ended = os.wait()
            began = self._workers.pop(pid, None)
            if began is None or self._stopping:  # not a worker, or one that was told to
                continue
            status = os.waitstatus_to_exitcode(ended)
            brief = time.monotonic() - began < _BRIEF_S
            if brief and not self._workers:
                return status or 1  # none could start: it would not be better the next time
            _log.error("worker ended, another takes its place", worker=pid, status=status)
            time.sleep(_BRIEF_S if brief else 0)
            self._fork()
        return 0

    def _fork(self) -> None:
        if self._stopping:
            return
        parent = os.getpid()
        signals = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        pid = os.fork()
        if pid:
            self._workers[pid] = time.monotonic()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            return
        for signum in (*signals, signal.SIGALRM):
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        status = 1
        try:
            end_with_parent(parent)
            self._work()
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            os._exit(status)

    def _stop(self, *_: int | FrameType | None) -> None:
        self._stopping = True
        signal.alarm(GRACE_S)
        self._signal(signal.SIGTERM)

    def _kill(self, *_: int | FrameType | None) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, signum: int) -> None:
        for pid in list(self._workers):
            os.kill(pid, signum)
