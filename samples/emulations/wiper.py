"""Overwrites its own made files with zeros, truncates and deletes them, folder by folder.

attack_type: destruction
severity: 0.9
arguments: FOLDERS FILES PAUSE_S
variants: 12 30 0.4 | 40 12 0.08 | 5 80 1.3
"""

import os
import random
import sys
import time
from pathlib import Path

folders, files, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
draw = random.Random(6)
for folder in range(folders):
    Path(f"data{folder}").mkdir()
    for number in range(files):
        Path(f"data{folder}/{number}").write_bytes(draw.randbytes(16000))
for folder in range(folders):
    for path in sorted(Path(f"data{folder}").iterdir()):
        with path.open("r+b") as file:
            file.write(bytes(16000))
            os.fsync(file.fileno())
        os.truncate(path, 0)
        path.unlink()
    Path(f"data{folder}").rmdir()
    time.sleep(pause)
