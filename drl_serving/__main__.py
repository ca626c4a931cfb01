"""Entry point of the service: `python -m drl_serving`, until SIGTERM or SIGINT.

It binds the port first, so that a caller waits instead of being refused, then imports the rest and
forks `serving.workers` workers that accept from it.
"""

import gc
import sys
from functools import partial
from typing import NoReturn

from drl_core.settings import Settings, SettingsError, load
from drl_serving.server import prefork


def run(settings: Settings) -> NoReturn:
    """Serve on `settings.serving.host` and `port`; the process becomes the workers' supervisor.

    The workers read the configuration by themselves, so `settings` must be what `load` gives.

    Raises:
        SettingsError: the settings would serve without credentials beyond this machine, or the
            port is taken.
    """
    serving = settings.serving
    try:
        listening = prefork.listen(serving.host, serving.port)
    except OSError as error:
        where = f"{serving.host}, port {serving.port}"
        raise SettingsError(
            f"serving.port: {where} cannot be used ({error.strerror}): set DRL_SERVING__PORT"
        ) from None
    gc.disable()  # what is imported stays: to look for garbage takes an eighth of the time
    from drl_serving.access.service import require_credentials
    from drl_serving.access.tls import uvicorn_options
    from drl_serving.observability import metrics
    from drl_serving.server import worker

    require_credentials(settings)
    uvicorn_options(settings)  # fails now where TLS is configured wrongly
    metrics.prepare(settings)
    module = [sys.executable, "-m"]
    prefork.run(
        partial(worker.serve, listening),
        serving.workers,
        [*module, "drl_serving.server.worker", str(listening.fileno())],
        [*module, "drl_serving.decisions.state.recovery"],
    )


def main() -> NoReturn:
    """Serve by the configuration; an invalid one is one line of error, exit status 1."""
    try:
        run(load())
    except SettingsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
