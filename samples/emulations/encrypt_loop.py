"""Encrypts its own files one by one, deletes the originals and leaves a note, as ransomware does.

The files are made here, in the temporary folder; the cipher is an XOR with a hash stream.

attack_type: ransomware
severity: 0.9
arguments: FILES BYTES PAUSE_S BURST
variants: 240 20000 0.03 1 | 40 60000 0.3 1 | 160 30000 1.5 25
"""

import hashlib
import random
import sys
import time
from pathlib import Path

files, size, pause, burst = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
draw = random.Random(0)
documents = Path("documents")
documents.mkdir()
for number in range(files):
    (documents / f"{number}.txt").write_bytes(draw.randbytes(size))
for number, path in enumerate(sorted(documents.iterdir())):
    plain = path.read_bytes()
    stream = hashlib.shake_256(b"key%d" % number).digest(len(plain))
    mixed = int.from_bytes(plain, "big") ^ int.from_bytes(stream, "big")
    path.with_suffix(".locked").write_bytes(mixed.to_bytes(len(plain), "big"))
    path.unlink()
    if number % burst == 0:
        time.sleep(pause)
Path("README_RESTORE.txt").write_text("This is a harmless emulation.\n")
