"""Starts a child of its own and tries to attach to it with ptrace, again and again.

Where a tracer is attached already (as during recording) the attempt fails, and stays an attempt.

attack_type: injection
severity: 0.7
arguments: ATTEMPTS PAUSE_S
variants: 12 0.5 | 60 0.08 | 6 1.2
"""

import ctypes
import os
import signal
import sys
import time

PTRACE_ATTACH, PTRACE_DETACH = 16, 17
attempts, pause = int(sys.argv[1]), float(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
for _ in range(attempts):
    child = os.fork()
    if child == 0:
        time.sleep(5)
        os._exit(0)
    if libc.ptrace(PTRACE_ATTACH, child, None, None) == 0:
        os.waitpid(child, 0)
        libc.ptrace(PTRACE_DETACH, child, None, None)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    time.sleep(pause)
