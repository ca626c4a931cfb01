"""`python -m benchmarks.ingest [--events N] [--rounds N] [--pipeline N]`: rates and ratios.

Part one: JSON lines -> validated events. Part two: windows -> states. Both beside pandas and a
row-by-row loop on the same input, in turns, by processor time of all threads (so: on one core),
best of the rounds. Part three: a batch of events through telemetry, states and experiences, by wall
time, with the peak of resident memory, in a process of its own.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from benchmarks.ingest import peers
from benchmarks.ingest.batch import WINDOWS_PER_EPISODE, lines, pipeline
from drl_core.policy import features
from drl_core.telemetry.event import parse_lines


def windows(rows: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Window rows [N, 14], a twentieth of the signals not measured, and the episode of each."""
    chance = np.random.default_rng(0)
    data = np.empty((rows, features.WINDOW_WIDTH))
    data[:, :9] = chance.exponential(1000.0, (rows, 9))
    data[:, 9:12] = chance.random((rows, 3)) < 0.01
    data[:, :12][chance.random((rows, 12)) < 0.05] = np.nan
    data[:, 12], data[:, 13] = 1.0, 0.0
    return data, np.arange(rows) // WINDOWS_PER_EPISODE


def interleaved(jobs: dict[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, float]:
    """Best rate per second of each job (with its number of rows), the jobs taking turns."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, (job, rows) in jobs.items():
            begin = time.process_time()
            job()
            rate = rows / (time.process_time() - begin)
            best[name] = max(best.get(name, 0.0), rate)
    return best


def compare(events: int, rounds: int) -> dict[str, dict[str, float]]:
    """Rates of ours, pandas and the loop, for both jobs; checks that the results agree."""
    block = lines(events)
    parsed, dead = parse_lines(block)
    assert not dead
    assert len(parsed) == len(peers.pandas_parse(block)) == len(peers.loop_parse(block)) == events
    rows, episode = windows(events * 10)
    few = slice(0, events)
    first = np.append(True, episode[1:] != episode[:-1])
    ours = features.fold(rows, first)[0]
    np.testing.assert_allclose(ours, peers.pandas_states(rows, episode), atol=1e-6)
    np.testing.assert_allclose(ours[few], peers.loop_states(rows[few], episode[few]), atol=1e-6)
    parse: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: parse_lines(block), events),
        "pandas": (lambda: peers.pandas_parse(block), events),
        "loop": (lambda: peers.loop_parse(block), events),
    }
    fold: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: features.fold(rows, first), len(rows)),
        "pandas": (lambda: peers.pandas_states(rows, episode), len(rows)),
        "loop": (lambda: peers.loop_states(rows[few], episode[few]), events),
    }
    return {
        "JSON lines -> events": interleaved(parse, rounds),
        "windows -> states": interleaved(fold, rounds),
    }


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__)
    parser.add_argument("--events", type=int, default=50_000, help="events of parts one and two")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pipeline", type=int, default=1_000_000, help="events of part three")
    options = parser.parse_args()
    print(f"{'one core':<24}{'ours/s':>12}{'pandas/s':>12}{'loop/s':>12}  x pandas  x loop")
    for name, rates in compare(options.events, options.rounds).items():
        ours, pandas, loop = (rates[peer] for peer in ("ours", "pandas", "loop"))
        print(
            f"{name:<24}{ours:>12,.0f}{pandas:>12,.0f}{loop:>12,.0f}"
            f"{ours / pandas:>10.1f}{ours / loop:>8.1f}"
        )
    if not options.pipeline:
        return
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=pipeline, args=(options.pipeline, answer))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the pipeline part ended with status {process.exitcode}")
    seconds, peak = answer.get()
    print(f"\n{options.pipeline:,} events, peak memory {peak:.2f} GiB")
    for stage, taken in seconds.items():
        print(f"  {stage:<26}{taken:>8.1f} s")
    total = sum(taken for stage, taken in seconds.items() if not stage.startswith("("))
    print(f"  {'all three tables':<26}{total:>8.1f} s")


if __name__ == "__main__":
    main()
