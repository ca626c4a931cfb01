"""Calls home to the loopback peer at jittered intervals and sends a few bytes about itself.

attack_type: command_and_control
severity: 0.6
arguments: CALLS MEAN_PAUSE_S BYTES
variants: 16 0.6 300 | 40 0.2 120 | 9 1.2 800
"""

import os
import random
import sys
import time
import urllib.request

calls, pause, size = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
draw = random.Random(4)
for _ in range(calls):
    url = f"http://127.0.0.1:{os.environ['PEER']}/64"
    urllib.request.urlopen(url).read()
    url = f"http://127.0.0.1:{os.environ['PEER']}/checkin"
    urllib.request.urlopen(url, data=draw.randbytes(size)).read()
    time.sleep(pause * draw.uniform(0.5, 1.5))
