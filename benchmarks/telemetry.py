"""`python -m benchmarks.telemetry [--rate N] [--seconds S]`: events acknowledged durably.

Single-event requests come in at a fixed rate over about 50 connections, whatever the answers take
(open loop), to a real service with two workers. Printed is how long each took from when it was due
until its event was on disk.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import aiohttp
import numpy as np

from benchmarks.chaos import event
from benchmarks.deployment import Deployment
from drl_core.telemetry.landing import LandingZone

CONNECTIONS = 50


async def load(url: str, rate: float, seconds: float) -> tuple[list[float], Counter[int]]:
    """Milliseconds of each answer, and how often each status."""
    took: list[float] = []
    statuses: Counter[int] = Counter()
    connections = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(url, connector=connections) as session:

        async def send(number: int, due: float) -> None:
            async with session.post("/v1/telemetry", json=event("rate", "0", number)) as answer:
                await answer.read()
            statuses[answer.status] += 1
            took.append((time.perf_counter() - due) * 1000)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(int(rate * seconds)):
                due = began + number / rate
                if (early := due - time.perf_counter()) > 0:
                    await asyncio.sleep(early)
                tasks.create_task(send(number, due))
    return took, statuses


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Deployment(Path(name), ready=False) as deployment:
        asyncio.run(load(deployment.url, 200, 2))  # warm up
        took, statuses = asyncio.run(load(deployment.url, options.rate, options.seconds))
        zone = LandingZone(Path(name) / "landing")
        zone.seal(max_segments=1_000_000)
        landed = {
            (e.sandbox_id, e.step)
            for key in zone.keys()  # noqa: SIM118 - no mapping
            for part in zone.read(key)
            for e in part
        }
    p50, p99 = np.percentile(took, (50, 99))
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{len(took)} events at {options.rate:g}/s: {dict(statuses)}, {len(landed)} landed")
    print(f"acknowledged durably: p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {max(took):.1f} ms")
    raise SystemExit(len(landed) < statuses[202])


if __name__ == "__main__":
    main()
