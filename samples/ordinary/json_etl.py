"""Reads JSON lines, validates and reshapes them, and writes partitions by day, in micro-batches.

arguments: BATCHES ROWS PAUSE_S
variants: 12 4000 0.3 | 40 600 0.1
"""

import json
import random
import sys
import time
from pathlib import Path

batches, rows, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
draw = random.Random(2)
for batch in range(batches):
    source = Path(f"in{batch}.jsonl")
    source.write_text(
        "".join(
            json.dumps({"id": n, "day": draw.randrange(7), "value": draw.gauss(0, 1)}) + "\n"
            for n in range(rows)
        )
    )
    days: dict[int, list[str]] = {}
    for line in source.read_text().splitlines():
        row = json.loads(line)
        days.setdefault(row["day"], []).append(json.dumps(row, sort_keys=True))
    for day, lines in days.items():
        Path(f"day{day}").mkdir(exist_ok=True)
        partial = Path(f"day{day}/{batch}.tmp")
        partial.write_text("\n".join(lines))
        partial.rename(f"day{day}/{batch}.jsonl")
    source.unlink()
    time.sleep(pause)
