"""Reads CSV files and computes statistics per group, with pauses as a person makes them.

arguments: FILES ROWS PAUSE_S
variants: 6 20000 1.0 | 14 6000 0.4
"""

import csv
import random
import statistics
import sys
import time
from pathlib import Path

files, rows, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
draw = random.Random(4)
for number in range(files):
    path = Path(f"sales{number}.csv")
    with path.open("w", newline="") as out:
        csv.writer(out).writerows((draw.choice("abcdef"), draw.gauss(100, 20)) for _ in range(rows))
    groups: dict[str, list[float]] = {}
    with path.open(newline="") as source:
        for group, amount in csv.reader(source):
            groups.setdefault(group, []).append(float(amount))
    report = {g: (statistics.mean(v), statistics.stdev(v)) for g, v in sorted(groups.items())}
    with Path("report.txt").open("a") as log:
        log.write(f"{number} {report}\n")
    time.sleep(pause)
