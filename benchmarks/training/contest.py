"""Contenders in processes of their own, so that they can take turns and be weighed one by one."""

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

WARM_UP = 300


@dataclass
class Seat:
    """A contender in its process."""

    process: multiprocessing.process.BaseProcess
    connection: Connection
    update: list[float] = field(default_factory=list)
    """Microseconds of processor time for an update, of each round."""
    sample: list[float] = field(default_factory=list)

    def ask(self, what: str, count: int = 0) -> float:
        """Send a question, wait for the answer.

        Raises:
            RuntimeError: the process has ended.
        """
        try:
            self.connection.send((what, count))
            answer: float = self.connection.recv()
        except (EOFError, ConnectionError) as cause:
            raise RuntimeError(f"{self.process.name} has ended") from cause
        return answer


def contend(name: str, connection: Connection) -> None:
    """Be a contender: set up, then answer "update" and "sample" in seconds, "memory" in MB."""
    with contextlib.redirect_stdout(sys.stderr):
        import psutil
        import torch

        from benchmarks.training import peers

        torch.set_num_threads(1)
        update, sample = peers.CONTENDERS[name][1](peers.transitions())
        update(WARM_UP)
    connection.send(0.0)
    while (question := connection.recv()) is not None:
        what, count = question
        if what == "memory":
            connection.send(psutil.Process().memory_info().rss / 1e6)
            continue
        job = update if what == "update" else sample
        begin = time.process_time()
        if job is not None:
            job(count)
        connection.send(time.process_time() - begin)


@contextlib.contextmanager
def seated(names: list[str]) -> Iterator[dict[str, Seat]]:
    """The contenders' processes, ready."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    context = multiprocessing.get_context("spawn")
    seats: dict[str, Seat] = {}
    try:
        for name in names:
            progress(f"setting up {name}")
            here, there = context.Pipe()
            process = context.Process(target=contend, args=(name, there), name=name, daemon=True)
            process.start()
            there.close()
            seats[name] = Seat(process, here)
            try:
                here.recv()
            except EOFError:
                raise RuntimeError(f"{name} could not be set up") from None
        yield seats
    finally:
        for seat in seats.values():
            with contextlib.suppress(ConnectionError):
                seat.connection.send(None)
            seat.process.join(10)
            if seat.process.is_alive():
                seat.process.terminate()


def progress(text: str) -> None:
    """One line on a terminal, nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
