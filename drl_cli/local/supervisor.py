"""Process supervisor: honcho runs the Procfile, and no descendant outlives it.

Run as `python -m drl_cli.local.supervisor PROCFILE MARK NAME...`. Its processes get MARK in their
environment, and so do their descendants: honcho stops process groups, the mark finds processes that
left theirs (a code server whose parent was killed). Output is prefixed with the process's name; the
exit status is that of the process that ended first.
"""

import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil
from honcho import manager
from honcho.environ import parse_procfile

MARK = "DRL_PROCESSES"
STOP_WAIT_S = 15.0
manager.KILL_WAIT = STOP_WAIT_S  # of 5: the daemon first ends its code server


class UnknownProcess(ValueError):  # noqa: N818
    """A name that the Procfile does not have."""


def commands(procfile: Path, names: Sequence[str] = ()) -> dict[str, str]:
    """Entries of a Procfile by name, in its order; all where no names are given.

    Raises:
        UnknownProcess: a name that is not in it.
    """
    known: dict[str, str] = dict(parse_procfile(procfile.read_text()).processes)
    if missing := [name for name in names if name not in known]:
        raise UnknownProcess(f"{procfile} has no {', '.join(missing)}; it has {', '.join(known)}")
    return {name: known[name] for name in known if not names or name in names}


def marked(mark: str) -> list[psutil.Process]:
    """Live processes with a mark in their environment."""
    return [process for process in psutil.process_iter() if _carries(process, mark)]


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return bool(process.environ().get(MARK) == mark)
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False


def send(processes: Sequence[psutil.Process], signum: int) -> None:
    """Send a signal to each process that is still alive."""
    for process in processes:
        try:
            process.send_signal(signum)
        except psutil.NoSuchProcess:
            continue


class ProcessSupervisor(manager.Manager):  # type: ignore[misc]  # honcho has no types
    """honcho's manager, stopping processes by their mark."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self._mark = mark

    def terminate(self) -> None:
        """Send SIGTERM to all, and SIGKILL to those still alive `STOP_WAIT_S` later."""
        if not self._terminating:
            timer = threading.Timer(STOP_WAIT_S, self.kill)
            timer.daemon = True
            timer.start()
        super().terminate()

    def _killall(self, force: bool = False) -> None:
        send(marked(self._mark), signal.SIGKILL if force else signal.SIGTERM)


def main(arguments: Sequence[str]) -> int:
    """Run the processes until one ends or a signal arrives."""
    procfile, mark, *names = arguments
    supervisor = ProcessSupervisor(mark)
    environ = {**psutil.Process().environ(), MARK: mark}
    for name, command in commands(Path(procfile), names).items():
        supervisor.add_process(name, command, env=environ, cwd=Path(procfile).parent)
    supervisor.loop()
    status: int = supervisor.returncode
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
