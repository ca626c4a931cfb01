"""Runs the service in this process until it is told to stop: `python -m drl_serving`."""

import uvicorn

from drl_core.settings import Settings, Watcher, load
from drl_serving import logs
from drl_serving.app import create_app


def run(settings: Settings) -> None:
    """Serve on `settings.serving.host` and `port`, one worker.

    Raises:
        SettingsError: the settings would serve without credentials beyond this machine.
    """
    app = create_app(settings, Watcher())
    logs.configure()
    uvicorn.run(
        app,
        host=settings.serving.host,
        port=settings.serving.port,
        loop="uvloop",
        http="httptools",
        workers=1,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    run(load())
