"""Runs the service until it is told to stop: `python -m drl_serving`.

A supervising process binds the port and keeps `serving.workers` workers alive on it.
"""

import subprocess
import sys
import threading

import uvicorn

from drl_core.processes import end_with_parent
from drl_core.settings import Settings, Watcher, load
from drl_serving import logs, metrics
from drl_serving.access.service import require_credentials
from drl_serving.access.tls import uvicorn_options


def run(settings: Settings) -> None:
    """Serve on `settings.serving.host` and `port`.

    The workers read the configuration by themselves, so `settings` must be what `load` gives.

    Raises:
        SettingsError: the settings would serve without credentials beyond this machine.
    """
    serving = settings.serving
    require_credentials(settings)
    tls = uvicorn_options(settings)
    metrics.prepare(settings)
    logs.configure(settings.observability, settings.home_path)
    restoring = [sys.executable, "-m", "drl_serving.decisions.restore"]
    threading.Thread(target=subprocess.run, args=(restoring,), daemon=True).start()
    uvicorn.run(
        "drl_serving.__main__:worker",
        factory=True,
        host=serving.host,
        port=serving.port,
        workers=serving.workers,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # nobody may say that they are somebody else
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        **tls,
    )


def worker() -> object:
    """One worker's application."""
    from drl_serving.app import create_app

    end_with_parent()
    settings = load()
    written = logs.configure(settings.observability, settings.home_path)
    return create_app(settings, Watcher(), written)


if __name__ == "__main__":
    run(load())
