"""The load generator: a process of its own that keeps HTTP/1.1 connections busy over raw sockets.

Jobs come in on standard input as JSON lines, what was seen leaves on standard output. Each
connection owns an episode and sends its steps in order, then those of the next; a step that was
refused is sent again later. `closed` sends when the answer to the last one is there. `open` sends
when a Poisson process says so, and counts time from then on (`from_intended`), or from the moment
the request left.
"""

import asyncio
import gc
import os
import random
import sys
import threading
import time
from collections import Counter, deque

import msgspec
import numpy as np
import uvloop

from benchmarks.serving.payloads import EPISODE, Wire

_PLACE = EPISODE.encode()
_LENGTH = b"content-length: "
_GRACE_S = 15.0
_LEAST_SLEEP_S = 0.0001


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to send."""

    kind: str
    port: int
    wire: Wire
    connections: int
    seconds: float
    rate_per_s: float = 0.0
    from_intended: bool = True
    """Else requests that find no free connection are not sent, and time begins with sending."""
    seed: int = 0


class Seen(msgspec.Struct, kw_only=True):
    """What came of a job."""

    seconds: float
    statuses: dict[int, int]
    without_retry_after: int
    """Refusals that do not say when to come again."""
    not_sent: int
    """For want of a free connection."""
    cpu_share: float
    """Of one processor, that this process took."""
    latencies: bytes
    """float64, seconds, of answers 200."""
    answered_at: bytes
    """float64, seconds since the begin, of the same."""
    jitter: bytes = b""
    """float64, seconds from when a request was due until it was handed to the socket."""
    lost: int = 0
    """Connections that the server closed, or requests without an answer in the end."""

    def times(self) -> np.ndarray:
        """Seconds of each answer 200."""
        return np.frombuffer(self.latencies)


class Load:
    """All connections of a job and what they saw."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.steps = job.wire.requests()
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []
        self.answered_at: list[float] = []
        self.jitter: list[float] = []
        self.without_retry_after = self.not_sent = self.lost = self.episodes = 0
        self.free: deque[Connection] = deque()
        self.due: deque[float] = deque()
        self.running = True
        self.began = 0.0

    def episode(self) -> bytes:
        """The next episode's name, as wide as its placeholder."""
        self.episodes += 1
        return b"%03x-%02x-%05x" % (os.getpid() % 4096, self.job.seed % 256, self.episodes)

    def done(self, connection: "Connection") -> None:
        """A connection has its answer."""
        if not self.running and not self.due:
            return
        if self.job.kind == "closed":
            connection.send(time.perf_counter())
        elif self.due:
            connection.send(self.due.popleft())
        else:
            self.free.append(connection)

    def arrive(self, times: list[float]) -> None:
        """Requests are due."""
        for when in times:
            if self.free:
                self.free.popleft().send(when)
            elif self.job.from_intended:
                self.due.append(when)
            else:
                self.not_sent += 1


class Connection(asyncio.Protocol):
    """One connection and its episode."""

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self.load = load
        self.step = 0
        self.name = load.episode()
        self.since = 0.0
        self.waiting = b""
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self.transport = transport  # type: ignore[assignment]

    def send(self, when: float) -> None:
        """Send the next step."""
        now = time.perf_counter()
        load = self.load
        if load.job.rate_per_s:
            load.jitter.append(now - when)
        self.since = when if load.job.from_intended else now
        self.busy = True
        self.transport.write(load.steps[self.step].replace(_PLACE, self.name))

    def data_received(self, data: bytes) -> None:
        """Take an answer when it is whole."""
        if self.waiting:
            data = self.waiting + data
        head = data.find(b"\r\n\r\n")
        lower = data[:head].lower() if head >= 0 else b""
        place = lower.find(_LENGTH)
        if head < 0 or place < 0 or len(data) < head + 4 + int(lower[place + 16 :].split(b"\r")[0]):
            self.waiting = data
            return
        self.waiting = b""
        self.busy = False
        load, now = self.load, time.perf_counter()
        status = int(data[9:12])
        load.statuses[status] += 1
        if status == 200:
            load.latencies.append(now - self.since)
            load.answered_at.append(now - load.began)
            self.step += 1
            if self.step == len(load.steps):
                self.step, self.name = 0, load.episode()
        elif status in (429, 503) and b"retry-after: " not in lower:
            load.without_retry_after += 1
        load.done(self)

    def connection_lost(self, error: Exception | None) -> None:
        """The server hung up."""
        if self.busy or self.load.running:
            self.load.lost += 1


def _pace(load: Load, loop: asyncio.AbstractEventLoop) -> None:
    """Say when requests are due: a thread, since the event loop's clock ticks in milliseconds."""
    draw, rate = random.Random(load.job.seed).expovariate, load.job.rate_per_s
    ends = load.began + load.job.seconds
    when = load.began + draw(rate)
    while when < ends:
        now = time.perf_counter()
        times = []
        while when <= now and when < ends:
            times.append(when)
            when += draw(rate)
        if times:
            loop.call_soon_threadsafe(load.arrive, times)
        time.sleep(max(_LEAST_SLEEP_S, when - time.perf_counter()))


async def run(job: Job) -> Seen:
    """Do a job."""
    loop, load = asyncio.get_running_loop(), Load(job)
    opened: list[Connection] = []
    for _ in range(job.connections):
        _, made = await loop.create_connection(lambda: Connection(load), "127.0.0.1", job.port)
        opened.append(made)
    cpu, load.began = time.process_time(), time.perf_counter()
    if job.kind == "closed":
        for connection in opened:
            connection.send(time.perf_counter())
        await asyncio.sleep(job.seconds)
    else:
        load.free.extend(opened)
        pacing = threading.Thread(target=_pace, args=(load, loop), daemon=True)
        pacing.start()
        while pacing.is_alive():
            await asyncio.sleep(0.005)
    load.running = False
    seconds = time.perf_counter() - load.began
    cpu_share = (time.process_time() - cpu) / seconds
    until = time.perf_counter() + _GRACE_S
    while (load.due or any(one.busy for one in opened)) and time.perf_counter() < until:
        await asyncio.sleep(0.005)
    load.lost += sum(one.busy for one in opened) + len(load.due)
    for connection in opened:
        connection.busy = False
        connection.transport.abort()
    return Seen(
        seconds=seconds,
        statuses=dict(load.statuses),
        without_retry_after=load.without_retry_after,
        not_sent=load.not_sent,
        cpu_share=cpu_share,
        latencies=np.array(load.latencies).tobytes(),
        answered_at=np.array(load.answered_at).tobytes(),
        jitter=np.array(load.jitter).tobytes(),
        lost=load.lost,
    )


def main() -> None:
    """Do jobs until standard input ends."""
    threading.stack_size(1 << 20)
    sys.setswitchinterval(0.0005)
    gc.disable()
    # a file of its own: with PYTHONUNBUFFERED that of `sys` may write less than it is given
    with open(sys.stdout.fileno(), "wb", closefd=False) as output:
        for line in sys.stdin.buffer:
            seen = uvloop.run(run(msgspec.json.decode(line, type=Job)))
            output.write(msgspec.json.encode(seen) + b"\n")
            output.flush()
            gc.collect()


if __name__ == "__main__":
    main()
