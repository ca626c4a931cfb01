"""Process supervisor: restarts workers that end, until SIGTERM or SIGINT; standard library only.

`drl_serving.server.prefork` forks the first workers and then becomes this program, in the same
process: they stay its children, and what was imported for them is not held a second time. A worker
that ended is replaced by a new process. Signals are blocked and waited for: none is missed on the
way.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

GRACE_S = 15
"""How long workers may take to end before they are killed."""
_BRIEF_S = 1.0
"""A worker that lived shorter is not replaced at once."""
_STOP = {signal.SIGTERM, signal.SIGINT}
WATCHED = {*_STOP, signal.SIGCHLD}
"""Signals that are blocked in this process, and waited for."""


class WorkerSupervisor:
    """Restarts workers that end.

    Args:
        workers: process ids of those that run, just begun.
        command: what begins another.
    """

    def __init__(self, workers: list[int], command: list[str]) -> None:
        self._began = dict.fromkeys(workers, time.monotonic())
        self._command = command

    def run(self) -> int:
        """Supervise; gives the exit status, that of a worker where none could start."""
        while True:
            for worker, status, lived in self._ended():
                others = [time.monotonic() - began for began in self._began.values()]
                if status > 0 and max(lived, *others, 0) < _BRIEF_S:
                    self._stop()
                    return status  # it could not start: the next could not either
                _log("worker ended, starting another", worker=worker, status=status)
                if lived < _BRIEF_S and signal.sigtimedwait(_STOP, _BRIEF_S):
                    self._stop()
                    return 0
                self._begin()
            if signal.sigwait(WATCHED) in _STOP:
                self._stop()
                return 0

    def _begin(self) -> None:
        pid = os.posix_spawn(self._command[0], self._command, os.environ, setsigmask=())
        self._began[pid] = time.monotonic()

    def _ended(self) -> Iterator[tuple[int, int, float]]:
        """Workers that ended since the last look: process id, exit status, seconds lived."""
        while self._began:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if pid in self._began:  # not what the process began before it became this program
                lived = time.monotonic() - self._began.pop(pid)
                yield pid, os.waitstatus_to_exitcode(status), lived

    def _stop(self) -> None:
        """Let the workers end; those that take too long are killed."""
        self._signal(signal.SIGTERM)
        until = time.monotonic() + GRACE_S
        while self._began and (left := until - time.monotonic()) > 0:
            for _ in self._ended():
                pass
            if self._began:
                signal.sigtimedwait({signal.SIGCHLD}, left)
        self._signal(signal.SIGKILL)

    def _signal(self, signum: int) -> None:
        for pid in self._began:
            os.kill(pid, signum)


def _log(event: str, **fields: int) -> None:
    """One line of the log, as the workers write them."""
    line = {"event": event, "level": "error", "timestamp": datetime.now(UTC).isoformat(), **fields}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(WorkerSupervisor(json.loads(sys.argv[1]), sys.argv[2:]).run())
