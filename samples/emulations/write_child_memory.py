"""Writes into the memory of its own child, by process_vm_writev and by /proc/PID/mem.

The child is a fork, so a buffer of this process lies at the same address in it; the bytes that are
written are the ones that are there.

attack_type: injection
severity: 0.8
arguments: ROUNDS PAUSE_S QUIET_S
variants: 10 0.6 0 | 40 0.12 0 | 5 0.8 3
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path


class IOVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


rounds, pause, quiet = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(b"harmless", 4096)
vector = IOVec(ctypes.addressof(buffer), 4096)
time.sleep(quiet)
for _ in range(rounds):
    child = os.fork()
    if child == 0:
        time.sleep(5)
        os._exit(0)
    libc.process_vm_writev(child, ctypes.byref(vector), 1, ctypes.byref(vector), 1, 0)
    with Path(f"/proc/{child}/mem").open("r+b", buffering=0) as memory:
        memory.seek(vector.base)
        memory.write(b"harmless")
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    time.sleep(pause)
