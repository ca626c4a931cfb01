"""Downloads files from the loopback peer, checks their hashes and keeps them, as an updater does.

arguments: FILES BYTES PAUSE_S
variants: 12 2000000 0.3 | 40 150000 0.1
"""

import hashlib
import os
import sys
import time
import urllib.request
from pathlib import Path

files, size, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
for number in range(files):
    url = f"http://127.0.0.1:{os.environ['PEER']}/{size}"
    with urllib.request.urlopen(url) as answer, Path(f"part{number}").open("wb") as out:
        digest = hashlib.sha256()
        while block := answer.read(65536):
            digest.update(block)
            out.write(block)
    with Path("checksums").open("a") as log:
        log.write(f"{digest.hexdigest()} part{number}\n")
    time.sleep(pause)
