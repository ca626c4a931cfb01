"""A cache that fills and is cleaned: writes many small files, reads some, deletes the oldest.

Looks like a wiper in the number of deleted files.

arguments: FILES ROUNDS PAUSE_S
variants: 250 8 0.3 | 900 3 0.6
"""

import hashlib
import random
import sys
import time
from pathlib import Path

files, rounds, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
draw = random.Random(3)
for _ in range(rounds):
    for number in range(files):
        name = hashlib.sha256(b"%d" % draw.getrandbits(40)).hexdigest()
        folder = Path("cache") / name[:2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(draw.randbytes(2000))
        if number % 5 == 0:
            (folder / name).read_bytes()
    time.sleep(pause)
    for path in sorted(Path("cache").rglob("*"))[: files * 3 // 4]:
        if path.is_file():
            path.unlink()
