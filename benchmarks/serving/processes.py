"""Processes that are measured: started on a free port, pinned, their processor time and memory.

What a server costs is that of its whole tree of processes.
"""

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from benchmarks.serving.client import Job, Seen

ROOT = Path(__file__).parents[2]
CORES = sorted(os.sched_getaffinity(0))
START_LIMIT_S = 90.0
_STOP_LIMIT_S = 10.0
_BYTECODE = tempfile.mkdtemp(prefix="bytecode-")
atexit.register(shutil.rmtree, _BYTECODE, ignore_errors=True)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process' environment without its own configuration, and with the package to be found.

    Bytecode is kept for all servers alike, whether or not they were installed with it.
    """
    dropped = ("DRL_", "PROMETHEUS_", "PYTHONDONTWRITEBYTECODE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": _BYTECODE} | dict(extra)


class Running:
    """A server's tree of processes."""

    def __init__(self, process: "subprocess.Popen[bytes]", began: float) -> None:
        self.process = process
        self.began = began

    def tree(self) -> list[psutil.Process]:
        """The process and all below it."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def cpu_s(self) -> float:
        """User and system seconds so far, of those that run and those that have ended."""
        total = 0.0
        for one in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(one.cpu_times()[:4])
        return total

    def memory_mb(self) -> tuple[float, float]:
        """(PSS, RSS) summed over the tree, in MB of 10^6 bytes.

        PSS counts a page that several processes share once.
        """
        pss = rss = 0
        for one in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                full = one.memory_full_info()
                pss, rss = pss + full.pss, rss + full.rss
        return pss / 1e6, rss / 1e6


@contextlib.contextmanager
def started(
    command: Sequence[str], environ: Mapping[str, str], cores: Sequence[int], log: Path
) -> Iterator[Running]:
    """A server while the body runs, on some cores only, in a process group of its own."""
    began = time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=environment(environ),
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    try:
        yield Running(process, began)
    finally:
        running = Running(process, began)
        below = running.tree()[1:] if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for left in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()


def first_answer_s(running: Running, port: int, request: bytes, log: Path) -> float:
    """Seconds from the start of a server's process to its first answer 200.

    Raises:
        RuntimeError: it ended, or never answered.
    """
    while time.perf_counter() - running.began < START_LIMIT_S:
        if running.process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as one:
            one.settimeout(5.0)
            one.sendall(request)
            if one.recv(65536)[9:12] == b"200":
                return time.perf_counter() - running.began
        time.sleep(0.003)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


class Client:
    """A load generator's process."""

    def __init__(self, cores: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving.client"],
            env=environment({}),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def begin(self, job: Job) -> None:
        """Send a job."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        self._process.stdin.flush()

    def end(self) -> Seen:
        """Wait for what came of it."""
        assert self._process.stdout is not None
        return msgspec.json.decode(self._process.stdout.readline(), type=Seen)

    def run(self, job: Job) -> Seen:
        """Do a job."""
        self.begin(job)
        return self.end()

    def pin(self, cores: Sequence[int]) -> None:
        """Move to other cores."""
        for thread in Path(f"/proc/{self._process.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
