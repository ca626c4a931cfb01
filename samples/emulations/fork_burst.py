"""Starts bursts of short-lived processes: a fork bomb with a bound.

attack_type: denial_of_service
severity: 0.7
arguments: BURSTS PROCESSES PAUSE_S
variants: 10 60 0.4 | 30 12 0.2 | 4 150 1.5
"""

import os
import sys
import time

bursts, processes, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
for _ in range(bursts):
    children = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            sum(range(2000))
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    time.sleep(pause)
