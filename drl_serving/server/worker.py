"""One worker process: uvicorn with the application, on a socket that it inherits.

Workers are forked with all of this imported; `python -m drl_serving.server.worker SOCKET PARENT` is
one that takes the place of another.
"""

import socket
import sys

import uvicorn

from drl_core.processes import end_with_parent
from drl_core.settings import load
from drl_serving.access.tls import uvicorn_options
from drl_serving.app import create_app
from drl_serving.observability import logs
from drl_serving.reload import Watcher
from drl_serving.server import prefork

ACCEPTS = 16
"""Connections that are accepted in one turn of the event loop."""

SWITCH_S = 0.0005
"""How long the event loop waits for a thread that has the interpreter, before it asks for it."""


def serve(listening: socket.socket) -> None:
    """Answer what comes in on a socket, until the process is told to end."""
    sys.setswitchinterval(SWITCH_S)
    settings = load()
    written = logs.configure(settings.observability, settings.home_path)
    config = uvicorn.Config(
        create_app(settings, Watcher(), written),
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # nobody may say that they are somebody else
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        **uvicorn_options(settings),
    )
    # the event loop accepts one connection a turn from each socket
    uvicorn.Server(config).run(sockets=[listening, *(listening.dup() for _ in range(ACCEPTS - 1))])
    written.close()


def main() -> None:
    """Take the place of a worker that ended."""
    descriptor, parent = map(int, sys.argv[1:])
    end_with_parent(parent)
    prefork.limit_arenas()
    serve(prefork.shared(socket.socket(fileno=descriptor)))


if __name__ == "__main__":
    main()
