"""`python -m benchmarks.decision_path [--cpu N [--against TREE]]`: one decision's path and cost.

One worker's ASGI application, with a published model in a temporary home, is called directly. A
profile hook (`sys.setprofile`) counts, for one steady-state event over HTTP and for a list of two,
the project's files that are entered, and the switches between them: calls into another file than
that of the call before. With `--cpu N` it gives CPU-µs a request over N requests instead, and with
`--against` the same of another checkout (with a `.venv` of its own), measured at the same time on
the same processor, so that what else the machine does burdens both: medians of the rounds, and of
their ratios, this one to the other.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from drl_core.settings import Settings
from drl_serving.app import create_app

CONCURRENT = 16
SLICE = 64
_PROJECT = f"{Path.cwd()}{os.sep}drl_"
_HEADERS = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")]


class Worker:
    """One worker's application, asked without a server."""

    def __init__(self, settings: Settings) -> None:
        self._app: Any = create_app(settings)
        self._app.max_queue_s = 60.0  # type: ignore[attr-defined]  # of older trees: shed nothing
        self._lifespan: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._started = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Worker":
        async def send(message: dict[str, str]) -> None:
            self._started.set()

        await self._lifespan.put({"type": "lifespan.startup"})
        scope: dict[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._task = asyncio.create_task(self._app(scope, self._lifespan.get, send))
        await self._started.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lifespan.put({"type": "lifespan.shutdown"})
        if self._task is not None:
            await self._task

    async def ask(self, body: bytes) -> bytes:
        """POST a body to /v1/decisions; the answer's body."""
        answer: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            answer.append(message)

        path = "/v1/decisions"
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "state": {},
        }
        scope |= {"method": "POST", "scheme": "http", "path": path, "raw_path": path.encode()}
        scope |= {"query_string": b"", "root_path": "", "headers": list(_HEADERS)}
        scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}
        await self._app(scope, receive, send)
        content = b"".join(part.get("body", b"") for part in answer)
        if answer[0]["status"] != 200:
            raise RuntimeError(f"{answer[0]['status']}: {content.decode()}")
        return content


def event(episode: str, step: int) -> dict[str, Any]:
    """An event with some signals."""
    return {
        "sandbox_id": "s",
        "episode_id": episode,
        "step": step,
        "syscall_count": 100 + step,
        "bytes_sent": 1e4,
        "cpu_usage": 40.0,
    }


def singles(episode: str) -> Iterator[bytes]:
    """Bodies of one event, an episode's steps."""
    step = 0
    while True:
        yield json.dumps(event(episode, step)).encode()
        step += 1


def pairs(episode: str) -> Iterator[bytes]:
    """Bodies of a list of an episode's next two steps."""
    step = 0
    while True:
        yield json.dumps([event(episode, step), event(episode, step + 1)]).encode()
        step += 2


class ProfileHook:
    """Which project files calls enter; for `sys.setprofile`."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.switches = 0
        self._last = ""

    def __call__(self, frame: FrameType, kind: str, _: object) -> None:
        name = frame.f_code.co_filename
        if kind == "call" and name.startswith(_PROJECT):
            self.files.add(name)
            self.switches += name != self._last
            self._last = name


async def follow(worker: Worker, bodies: Iterator[bytes]) -> tuple[int, tuple[str, ...]]:
    """Switches and files of the usual request; background tasks may run during others."""
    for _ in range(50):
        await worker.ask(next(bodies))
    seen: Counter[tuple[int, tuple[str, ...]]] = Counter()
    for _ in range(21):
        body, hook = next(bodies), ProfileHook()
        sys.setprofile(hook)
        try:
            await worker.ask(body)
        finally:
            sys.setprofile(None)
        seen[hook.switches, tuple(sorted(hook.files))] += 1
    return seen.most_common(1)[0][0]


LOADS: dict[str, Callable[[str], list[Iterator[bytes]]]] = {
    "one event": lambda run: [singles(f"a{run}")],
    "a list of two": lambda run: [pairs(f"b{run}")],
    f"{CONCURRENT} events at once": lambda run: [singles(f"c{run} {n}") for n in range(CONCURRENT)],
}
"""What is sent: for each caller, an episode's bodies."""


async def cpu(worker: Worker, count: int, name: str, run: str) -> float:
    """CPU-µs a request.

    The first decile of slices of SLICE requests: what else the machine does only adds to a slice.
    """
    return statistics.quantiles(await _slices(worker, LOADS[name](run), count), n=10)[0]


async def _slices(worker: Worker, senders: list[Iterator[bytes]], count: int) -> list[float]:
    """CPU-µs a request of each slice; the senders send at once."""
    found = []
    for _ in range(count // SLICE):
        turns = [[next(bodies) for bodies in senders] for _ in range(SLICE // len(senders))]
        began = time.process_time()
        for turn in turns:
            if len(turn) == 1:
                await worker.ask(turn[0])
            else:
                await asyncio.gather(*(worker.ask(body) for body in turn))
        found.append((time.process_time() - began) / SLICE * 1e6)
    return found


async def measure(settings: Settings, requests: int) -> None:
    """Print the path; or, for each name of a load that comes in, its CPU time."""
    async with Worker(settings) as worker:
        if requests:
            for name in LOADS:
                await cpu(worker, 320, name, "warm-up")
            print(flush=True)
            for run, line in enumerate(sys.stdin):
                print(await cpu(worker, requests, line.strip(), f"{run}"), flush=True)
            return
        for name, bodies in (("one event", singles("a")), ("a list of two", pairs("b"))):
            switches, files = await follow(worker, bodies)
            print(f"{name}: {len(files)} files, {switches} switches")
            for file in files:
                print(f"    {Path(file).relative_to(Path.cwd())}")


def compare(trees: list[Path], homes: Path, requests: int, rounds: int) -> None:
    """Print medians of the trees' CPU times, measured at the same time, and of their ratios."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one processor for all of them
    workers = [_start(tree, homes, number, requests) for number, tree in enumerate(trees)]
    for worker in workers:
        while _line(worker).strip():  # its log, until it is warm
            pass
    for name in LOADS:
        found = []
        for _ in range(rounds):
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write(f"{name}\n")
                worker.stdin.flush()
            found.append([float(_line(worker)) for worker in workers])
        text = ", ".join(f"{statistics.median(column):.1f}" for column in zip(*found, strict=True))
        ratios = [times[0] / times[-1] for times in found]
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name}: {text} CPU-µs a request; ratio {spread}")
    for worker in workers:
        worker.communicate()


def _start(tree: Path, homes: Path, number: int, requests: int) -> "subprocess.Popen[str]":
    home = homes / f"{number}"
    shutil.copytree(homes / "home", home)
    options = ["--cpu", f"{requests}", "--home", f"{home}", "--worker"]
    return subprocess.Popen(
        [f"{tree}/.venv/bin/python", __file__, *options],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(worker: "subprocess.Popen[str]") -> str:
    assert worker.stdout is not None
    return worker.stdout.readline()


def publish(home: Path) -> None:
    """Release a model of the default learner's size."""
    from benchmarks.release_variants import Publisher  # torch: not in the measured processes

    Publisher(home).publish(0)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cpu", type=int, default=0, metavar="N", help="CPU-µs over N requests")
    parser.add_argument("--against", type=Path, metavar="TREE", help="another checkout")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        asyncio.run(measure(Settings(home=str(chosen.home)), chosen.cpu))
        return
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        publish(home)
        if chosen.cpu:
            trees = [Path.cwd(), *([chosen.against] if chosen.against else [])]
            compare(trees, Path(folder), chosen.cpu, chosen.rounds)
        else:
            asyncio.run(measure(Settings(home=str(home)), 0))


if __name__ == "__main__":
    main()
