"""Parent-death signal (PR_SET_PDEATHSIG): child processes that end with their parent, always."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def die_with_parent(signum: int = signal.SIGTERM) -> Callable[[], None]:
    """A `preexec_fn`: the kernel sends the child a signal when its parent ends, even by SIGKILL.

    The parent is the *thread* that forks: it must live as long as the child is to live.
    """
    parent = os.getpid()

    def ask_kernel() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)

    return ask_kernel


def end_with_parent(parent: int, signum: int = signal.SIGTERM) -> None:
    """The same, called in a child that was forked from the process `parent`."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
