"""Polls a service for its status every second or so and logs it. Looks like a beacon.

arguments: POLLS PAUSE_S
variants: 14 0.6 | 30 0.25
"""

import os
import sys
import time
import urllib.request
from pathlib import Path

polls, pause = int(sys.argv[1]), float(sys.argv[2])
for number in range(polls):
    started = time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{os.environ['PEER']}/200") as answer:
        status, size = answer.status, len(answer.read())
    line = f"{number} {status} {size} {time.perf_counter() - started:.4f}\n"
    with Path("status.log").open("a") as log:
        log.write(line)
    time.sleep(pause)
