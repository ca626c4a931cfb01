"""Runs the service until it is told to stop: `python -m drl_serving`.

A supervising process binds the port and keeps `serving.workers` workers alive on it.
"""

import sys
from functools import partial
from typing import Any

import uvicorn

from drl_core.settings import Settings, SettingsError, Watcher, load
from drl_serving import logs, metrics, workers
from drl_serving.access.service import require_credentials
from drl_serving.access.tls import uvicorn_options
from drl_serving.app import create_app


def run(settings: Settings) -> int:
    """Serve on `settings.serving.host` and `port`; gives the exit status.

    The workers read the configuration by themselves, so `settings` must be what `load` gives.

    Raises:
        SettingsError: the settings would serve without credentials beyond this machine, or the
            port is taken.
    """
    serving = settings.serving
    require_credentials(settings)
    tls = uvicorn_options(settings)
    metrics.prepare(settings)
    try:
        listening = workers.listen(serving.host, serving.port)
    except OSError as error:
        where = f"{serving.host}, port {serving.port}"
        raise SettingsError(
            f"serving.port: {where} cannot be used ({error.strerror}): set DRL_SERVING__PORT"
        ) from None
    restoring = [sys.executable, "-m", "drl_serving.decisions.restore"]
    work = partial(_work, [listening], tls)
    return workers.Supervisor(work, serving.workers, restoring).run()


def _work(sockets: list[Any], tls: dict[str, Any]) -> None:
    """One worker."""
    settings = load()
    written = logs.configure(settings.observability, settings.home_path)
    config = uvicorn.Config(
        create_app(settings, Watcher(), written),
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
    uvicorn.Server(config).run(sockets=sockets)
    written.close()


if __name__ == "__main__":
    sys.exit(run(load()))
