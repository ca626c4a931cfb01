"""Tries to change its user and capabilities in children, after giving its rights up, so all fail.

attack_type: privilege_escalation
severity: 0.6
arguments: ATTEMPTS PAUSE_S
variants: 14 0.5 | 60 0.08 | 7 1.2
"""

import contextlib
import ctypes
import os
import sys
import time

NOBODY, PR_SET_KEEPCAPS = 65534, 8
attempts, pause = int(sys.argv[1]), float(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
for attempt in range(attempts):
    child = os.fork()
    if child == 0:
        with contextlib.suppress(PermissionError):
            os.setresuid(NOBODY, NOBODY, NOBODY)
        for call in (os.setuid, os.setgid):
            with contextlib.suppress(PermissionError):
                call(0)
        libc.prctl(PR_SET_KEEPCAPS, attempt % 2, 0, 0, 0)
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(pause)
