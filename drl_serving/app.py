"""Application factory: settings in, an ASGI app out, with every part wired in one place.

One event is decided inline on the event loop; loading models, landing telemetry and reading
releases run in threads. Nothing but a model and the workers' shared memory is needed to decide:
neither the database nor the landing zone.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from litestar import Litestar

from drl_core.settings import Settings
from drl_serving import routes
from drl_serving.access.service import AccessControl, require_credentials
from drl_serving.audit.log import Audit
from drl_serving.audit.refusals import Refusals
from drl_serving.background import OUTBOX_STORES, Maintenance, run_forever
from drl_serving.console.health import Overview
from drl_serving.console.page_context import Console
from drl_serving.console.sessions import ConsoleSessions
from drl_serving.decisions.controller import EventDecider, FastPathEvents, FastPathRows
from drl_serving.decisions.engine.action_selection import Rules
from drl_serving.decisions.engine.engine import DecisionEngine
from drl_serving.decisions.engine.shadow import Shadow
from drl_serving.decisions.engine.stateless import RowDecider
from drl_serving.decisions.log_controller import Feeds
from drl_serving.decisions.state.decision_reader import DecisionReader
from drl_serving.decisions.state.episode_store import EpisodeStore
from drl_serving.decisions.state.journal import Journal
from drl_serving.gateway.gateway import FastPathRoute, Gateway, GatewayHeaders
from drl_serving.http.options import OptionsMiddleware
from drl_serving.http.request_body import Limits
from drl_serving.http.security_headers import json_headers, page_headers
from drl_serving.live_settings import LiveSettings
from drl_serving.models.holder import ModelHolder
from drl_serving.observability.logs import Logs
from drl_serving.observability.metrics import Metrics
from drl_serving.observability.otlp_exporter import SpanExporter
from drl_serving.open_inference.fast_route import PATH, FastPathInfer, Inferrer
from drl_serving.open_inference.service import Inference
from drl_serving.patterns.service import Patterns
from drl_serving.reload import Reload, Watcher
from drl_serving.storage.outbox_storage import Storage
from drl_serving.storage.shared_state import SharedState
from drl_serving.telemetry.service import TelemetryService


class Service:
    """The parts of one worker.

    Args:
        settings: the configuration at the start.
        watcher: of the configuration's files, for what may change while running.
        logs: whose level may change.

    Raises:
        SettingsError: the settings would serve without credentials beyond this machine.
    """

    def __init__(
        self, settings: Settings, watcher: Watcher | None = None, logs: Logs | None = None
    ) -> None:
        require_credentials(settings)
        serving = settings.serving
        self.settings = settings
        self._logs = logs
        self.metrics = Metrics()
        self.state = SharedState(settings.state_path, serving.max_episodes)
        self.audit = Audit(settings.home_path / "audit")
        refused = Refusals(self.metrics, self.audit)
        self.access = AccessControl(settings, self.state.env, self.state.buckets, refused)
        self.models = ModelHolder(settings, self.metrics)
        self.inference = Inference(settings, self.models, self.audit)
        self.episodes = EpisodeStore(self.state, serving.max_episodes, serving.episode_ttl_s)
        self.shadow = Shadow(self.metrics.compared, self.metrics.shadow_skipped.inc)
        self.decisions = DecisionEngine(
            self.episodes, self.models, Rules.of(serving), self.metrics, self.shadow
        )
        self.limits = Limits(serving.max_batch, serving.max_body_bytes, serving.request_timeout_s)
        self.telemetry = TelemetryService(
            settings.landing_path, self.limits, serving.telemetry_buffer
        )
        self.storage = Storage(settings, OUTBOX_STORES)
        self.patterns = Patterns(self.storage)
        kept = self.storage.outbox if self.storage.database else None
        self.journal = Journal(self.state, kept)
        self.reader = DecisionReader(self.journal, self.storage, self.models)
        self.maintenance = Maintenance(
            self.access, self.metrics, self.storage, settings.database_url
        )
        self.metrics.watch_episodes(lambda: len(self.episodes))
        self.metrics.watch_gauge(self.metrics.telemetry_buffered, lambda: self.telemetry.waiting)
        self.events = EventDecider(self.decisions, self.limits)
        self.rows = RowDecider(self.decisions, self.limits)
        self.inferrer = Inferrer(self.inference, self.limits)
        fast_paths: dict[str, FastPathRoute] = {
            "/v1/decisions": FastPathEvents(self.access, self.events),
            "/v1/decisions/rows": FastPathRows(self.access, self.rows),
            PATH: FastPathInfer(self.access, self.inferrer),
        }
        tls = serving.tls_certificate is not None
        headers = GatewayHeaders(json_headers(tls), page_headers(tls))
        sessions = ConsoleSessions(self.access, settings.keys_path, secure=tls)
        self.console = Console(sessions, self.access)
        traced = settings.observability.otlp_endpoint is not None
        self.spans = SpanExporter(settings.observability) if traced else None
        self.gateway = Gateway(
            OptionsMiddleware(routes.application(self._parts(), self.lifespan)),
            self.access,
            self.metrics,
            self.spans,
            fast_paths,
            headers,
            sessions.principal,
        )
        self.metrics.watch_gauge(self.metrics.in_flight, lambda: self.gateway.shedder.in_flight)
        self.live = watcher and LiveSettings(settings, watcher, self._reload)
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Hand the reloadable fields to the parts that read them."""
        self.settings = settings
        serving = settings.serving
        self.decisions.rules = self.shadow.rules = Rules.of(serving)
        self.limits.max_batch = self.inference.max_rows = serving.max_batch
        self.limits.max_body_bytes = serving.max_body_bytes
        self.limits.timeout_s = serving.request_timeout_s
        self.models.set_challenger(serving.challenger)
        self.access.configure(settings.access)
        self.maintenance.retention_days = serving.decision_log_days
        self.gateway.shedder.max_in_flight = serving.max_in_flight
        self.gateway.timeout_s = serving.request_timeout_s
        self.gateway.max_body = serving.max_body_bytes
        self.gateway.trace_share = settings.observability.trace_share
        if self._logs is not None:
            self._logs.set_level(settings.observability.log_level)

    def _reload(self, change: Reload) -> None:
        self.configure(change.settings)
        actor = f"service, pid {os.getpid()}"
        for action, fields in (
            ("configuration.reloaded", change.taken),
            ("configuration.needs_restart", change.needs_restart),
        ):
            if fields:
                self.audit.record(action, actor=actor, target=", ".join(fields))

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Litestar) -> AsyncIterator[None]:
        """Load the model, then serve, with the background tasks beside it."""
        await self.models.poll()
        await self.storage.open()
        background = [
            self.models.watch,
            self.shadow.watch,
            self.metrics.flush_periodically,
            self.journal.watch,
            self.gateway.cancel_overdue_requests,
            self.maintenance.reload_credentials_and_report_outbox,
            self.maintenance.prune_decision_log,
        ]
        if self.live:
            background.append(self.live.poll_periodically)
        tasks = [asyncio.create_task(run_forever(work)) for work in background]
        calls = None
        if self.settings.serving.grpc_port is not None:
            from drl_serving.open_inference.grpc import (
                server as rpc,  # gRPC takes memory: only where it is wanted
            )

            calls = await rpc.start(self.settings, self.inference, self.access, self.metrics)
        try:
            yield
        finally:
            if calls is not None:
                await rpc.stop(calls)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.telemetry.close()
            await asyncio.to_thread(self.journal.carry_on)
            await self.storage.close()
            await asyncio.to_thread(self.audit.close)
            if self.spans is not None:
                await asyncio.to_thread(self.spans.close)
            self.metrics.close()
            self.state.close()

    def _parts(self) -> dict[str, object]:
        """What handlers may ask for, by the name of their argument."""
        return {
            "settings": self.settings,
            "limits": self.limits,
            "metrics": self.metrics,
            "models": self.models,
            "inference": self.inference,
            "inferrer": self.inferrer,
            "decisions": self.decisions,
            "event_decider": self.events,
            "row_decider": self.rows,
            "journal": self.journal,
            "reader": self.reader,
            "feeds": Feeds(),
            "telemetry": self.telemetry,
            "patterns": self.patterns,
            "audit": self.audit,
            "access": self.access,
            "console": self.console,
            "overview": Overview(
                self.settings,
                self.models,
                self.decisions,
                self.journal,
                self.telemetry,
                self.storage,
                self.metrics,
            ),
        }


def create_app(
    settings: Settings, watcher: Watcher | None = None, logs: Logs | None = None
) -> Gateway:
    """Build the service: an ASGI application for one worker."""
    return Service(settings, watcher, logs).gateway
