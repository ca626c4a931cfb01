"""The application: settings in, a Litestar app out, with every part wired in one place.

Decisions run inline on the event loop; loading models, landing telemetry and reading releases run
in threads. Nothing but a model is needed to decide: neither the database nor the landing zone.
"""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator

from litestar import Litestar
from litestar.di import Provide

from drl_core.settings import Settings, SettingsError, Watcher
from drl_serving import openapi
from drl_serving.configuration import LiveSettings
from drl_serving.decisions.controller import DecisionController
from drl_serving.decisions.episodes import EpisodeStore
from drl_serving.decisions.service import DecisionService
from drl_serving.health.controller import HealthController
from drl_serving.metrics import Metrics
from drl_serving.model import ModelHolder
from drl_serving.models.controller import ModelController
from drl_serving.patterns.controller import PatternController
from drl_serving.patterns.service import Patterns
from drl_serving.problems import answer
from drl_serving.telemetry.controller import TelemetryController
from drl_serving.telemetry.service import TelemetryService


def create_app(settings: Settings, watcher: Watcher | None = None) -> Litestar:
    """Build the service.

    Args:
        settings: the configuration at the start.
        watcher: of the configuration's files, for what may change while running.

    Raises:
        SettingsError: the settings would serve without credentials beyond this machine.
    """
    require_loopback(settings)
    metrics = Metrics()
    models = ModelHolder(settings, metrics)
    episodes = EpisodeStore(settings.serving.max_episodes)
    decisions = DecisionService(episodes, settings.serving.mode)
    telemetry = TelemetryService(settings.landing_path, settings.serving.max_batch)
    patterns = Patterns(settings.database_url)
    metrics.watch_episodes(lambda: len(episodes))

    @contextlib.asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        await models.poll()
        await patterns.open()
        watching = [asyncio.create_task(models.watch())]
        if watcher is not None:
            live = LiveSettings(watcher, decisions, telemetry)
            watching.append(asyncio.create_task(live.watch()))
        try:
            yield
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            await patterns.close()

    parts = {
        "settings": settings,
        "metrics": metrics,
        "models": models,
        "decisions": decisions,
        "telemetry": telemetry,
        "patterns": patterns,
    }
    return Litestar(
        route_handlers=[
            DecisionController,
            TelemetryController,
            ModelController,
            PatternController,
            HealthController,
        ],
        dependencies={name: _provide(part) for name, part in parts.items()},
        exception_handlers={Exception: answer},
        before_send=[metrics.before_send],
        lifespan=[lifespan],
        openapi_config=openapi.config(),
        request_max_body_size=settings.serving.max_body_bytes,
        logging_config=None,
    )


def require_loopback(settings: Settings) -> None:
    """Refuse to listen beyond this machine: callers have no credentials yet.

    Raises:
        SettingsError: naming `serving.host`.
    """
    host = settings.serving.host
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise SettingsError(
            f"serving.host is {host!r}: the service has no credentials yet, so it listens on this "
            "machine only; set it to 127.0.0.1"
        )


def _provide(part: object) -> Provide:
    return Provide(lambda: part, use_cache=True, sync_to_thread=False)
