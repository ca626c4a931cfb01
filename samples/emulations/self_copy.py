"""Copies itself into many folders of its own and starts copies of itself there, to a bounded depth.

attack_type: worm
severity: 0.7
arguments: GENERATIONS COPIES PAUSE_S
variants: 3 3 0.5 | 2 6 0.3 | 6 1 0.8
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

generations, copies, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
for number in range(copies if generations else 0):
    folder = Path(f"share{number}")
    folder.mkdir()
    target = shutil.copy(__file__, folder)
    for path in Path().rglob("*.py"):
        path.read_bytes()
    time.sleep(pause)
    arguments = [str(generations - 1), str(copies), str(pause)]
    subprocess.run([sys.executable, Path(target).name, *arguments], cwd=folder, check=True)
