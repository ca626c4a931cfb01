"""`python -m benchmarks.training [--rounds N] [--updates N] [--seeds N]`.

Part one: updates of DQN per second of processor time, on one thread. Each contender lives in a
process of its own and the processes take turns, so that what slows the machine slows all of them;
a ratio is the median over the rounds of ratios within a round, with their quartiles. Memory is that
of the contender's process with a full replay. Part two: what saving costs. Part three: regret on an
environment whose optimum is known, at equal seconds of processor time (see `regret`).

The peers are the optional dependency `bench`; one that is not installed is named as absent.
"""

import argparse
import importlib.metadata
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.training.contest import progress, seated

REACH = {
    "Stable-Baselines3": 3.3,
    "Tianshou": 4.5,
    "TorchRL": 4.5,
    "d3rlpy": 5.0,
    "floor": 0.6,
}
"""Least ratio of our updates per second to each (shared goals, see docs/learning.md)."""
SAMPLING_REACH = 7.0
REGRET_REACH = 0.2
CHECKPOINT_REACH_S, MEMORY_REACH_MB = 0.15, 1000.0


def ratios(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Median and quartiles of how many times faster we were, round by round."""
    found = [b / a for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return middle, low, high


def updates(names: list[str], rounds: int, count: int) -> None:
    """Part one: the table of updates, sampling and memory."""
    with seated(names) as seats:
        for number in range(rounds):
            for name, seat in seats.items():
                progress(f"round {number + 1} of {rounds}: {name}")
                seat.update.append(seat.ask("update", count) / count * 1e6)
                if name != "floor":
                    seat.sample.append(seat.ask("sample", count) / count * 1e6)
        memory = {name: seat.ask("memory") for name, seat in seats.items()}
    progress("")
    ours = seats["ours"]
    print(f"{'':<20}{'updates/s':>10}{'us':>8}{'ours is x':>11}  quartiles    reach  ", end="")
    print(f"{'sample us':>10}{'ours is x':>11}{'RSS MB':>9}")
    for name, seat in seats.items():
        taken = statistics.median(seat.update)
        middle, low, high = ratios(ours.update, seat.update)
        reach = f">= {REACH[name]}" if name in REACH else ""
        print(f"{name:<20}{1e6 / taken:>10,.0f}{taken:>8,.0f}", end="")
        print(f"{middle:>11.2f}  {low:.2f}-{high:.2f}  {reach:>9}", end="")
        if seat.sample:
            times = ratios(ours.sample, seat.sample)[0]
            print(f"{statistics.median(seat.sample):>12.1f}{times:>11.2f}", end="")
        else:
            print(f"{'':>23}", end="")
        print(f"{memory[name]:>9,.0f}")
    print(
        f"ours / floor is our share of what the matrix products allow; sampling's reach is "
        f">= {SAMPLING_REACH:.0f} x Stable-Baselines3"
    )


def saving(rounds: int) -> None:
    """Part two: an atomic checkpoint with a full replay, and this process's memory."""
    import psutil
    import torch

    from benchmarks.training import peers
    from drl_assets.learning.learners import checkpoint, dqn
    from drl_assets.learning.learners.networks import seeded_network

    torch.set_num_threads(1)
    state = dqn.start(dqn.DQNConfig(), seeded_network(peers.HIDDEN, 0), 0, torch.device("cpu"))
    state.replay.add(peers.transitions())
    walls, cpu = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "progress.pt"
        for _ in range(rounds):
            begin, busy = time.perf_counter(), time.process_time()
            checkpoint.save_progress(path, "benchmark", dqn.dump(state))
            walls.append(time.perf_counter() - begin)
            cpu.append(time.process_time() - busy)
        size = path.stat().st_size / 1e6
    resident = psutil.Process().memory_info().rss / 1e6
    print(f"\nan atomic checkpoint with {peers.CAPACITY:,} transitions ({size:.0f} MB): ", end="")
    print(f"median {statistics.median(walls):.3f} s, best {min(walls):.3f} s ", end="")
    print(f"(reach <= {CHECKPOINT_REACH_S} s), of which CPU {statistics.median(cpu):.3f} s")
    print(f"the process with its replay: {resident:,.0f} MB (reach < {MEMORY_REACH_MB:,.0f})")


def regrets(seeds: int, trajectories: int, with_sb3: bool) -> None:
    """Part three: the table of regrets."""
    from benchmarks.training import regret

    print(f"\nregret on G2 at equal CPU seconds, from {trajectories:,} trajectories")
    print(f"{'':<28}{'CPU s':>8}{'regret':>9}   of each seed, as a share of always-monitor's")
    lines = regret.compare(seeds, trajectories, with_sb3)
    print(*lines, sep="\n")
    if with_sb3:
        best = min(statistics.mean(line.shares) for line in lines[1:])
        ours = statistics.mean(lines[0].shares)
        print(f"ours is {ours / best:.2f} of the better one of SB3's (reach <= {REGRET_REACH})")


def installed() -> tuple[list[str], list[str]]:
    """Contenders that can run here, and a line for each that cannot."""
    from benchmarks.training import peers

    names, absent = [], []
    for name, (distribution, _) in peers.CONTENDERS.items():
        try:
            importlib.metadata.version(distribution)
            names.append(name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(f"{name}: absent, {distribution} is not installed (extra `bench`)")
    return names, absent


def versions(names: list[str]) -> list[str]:
    """The distributions that these contenders are, with their versions."""
    from benchmarks.training import peers

    distributions = {peers.CONTENDERS[name][0]: None for name in names}
    return [f"{name} {importlib.metadata.version(name)}" for name in distributions]


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--updates", type=int, default=1000, help="of each contender in a round")
    parser.add_argument("--seeds", type=int, default=3, help="of part three; 0 leaves it out")
    parser.add_argument("--trajectories", type=int, default=10_000, help="of part three")
    options = parser.parse_args()
    names, absent = installed()
    print(*versions(names), sep=", ")
    print(*absent, sep="\n", end="\n" if absent else "")
    updates(names, options.rounds, options.updates)
    saving(options.rounds)
    if options.seeds:
        regrets(options.seeds, options.trajectories, "Stable-Baselines3" in names)


if __name__ == "__main__":
    main()
