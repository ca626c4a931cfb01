"""A server that gives its rights up, as daemons do: its workers change to a user without rights,
then answer requests over a pipe.

arguments: WORKERS REQUESTS PAUSE_S
variants: 4 60 0.05 | 2 200 0.02
"""

import contextlib
import hashlib
import os
import sys
import time

workers, requests, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
NOBODY = 65534
for worker in range(workers):
    reader, writer = os.pipe()
    if os.fork() == 0:
        with contextlib.suppress(PermissionError):  # only root has rights to give up
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        for _ in range(requests):
            size = int(os.read(reader, 8))
            hashlib.sha256(b"x" * size).digest()
        os._exit(0)
    for request in range(requests):
        os.write(writer, b"%8d" % (1000 + request * worker))
        time.sleep(pause)
    os.wait()
