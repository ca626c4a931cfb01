"""Counts words of many files in a pool of processes that is renewed for each round.

arguments: ROUNDS WORKERS FILES
variants: 8 4 40 | 25 8 10
"""

import collections
import multiprocessing
import sys
import time
from pathlib import Path

rounds, workers, files = (int(value) for value in sys.argv[1:])


def count(path: Path) -> collections.Counter[str]:
    return collections.Counter(path.read_text().split())


if __name__ == "__main__":
    for number in range(files):
        Path(f"text{number}").write_text(f"lorem ipsum dolor {number} sit amet " * 4000)
    for _ in range(rounds):
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            total = sum(pool.map(count, Path().glob("text*")), collections.Counter())
        Path("counts").write_text(repr(total.most_common(20)))
        time.sleep(0.2)
