"""Overwrites parts of its own files with random bytes and renames them: intermittent encryption.

attack_type: ransomware
severity: 0.8
arguments: FILES BLOCKS PAUSE_S
variants: 300 6 0.01 | 60 3 0.15 | 25 12 0.45
"""

import random
import sys
import time
from pathlib import Path

files, blocks, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
draw = random.Random(1)
for folder in ("photos", "mail", "projects"):
    Path(folder).mkdir()
paths = [Path(("photos", "mail", "projects")[n % 3]) / f"{n}.dat" for n in range(files)]
for path in paths:
    path.write_bytes(draw.randbytes(4096 * blocks * 2))
for path in paths:
    with path.open("r+b") as file:
        for block in range(blocks):
            file.seek(8192 * block)
            file.read(4096)
            file.seek(8192 * block)
            file.write(draw.randbytes(4096))
    path.rename(path.with_suffix(".enc"))
    time.sleep(pause)
