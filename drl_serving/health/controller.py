"""`GET /health/live`, `GET /health/ready` and `GET /metrics`."""

import asyncio

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from prometheus_client import CONTENT_TYPE_LATEST

from drl_serving.decisions.engine.engine import DecisionEngine
from drl_serving.health.schemas import Live, Ready
from drl_serving.models.holder import ModelHolder
from drl_serving.observability.metrics import Metrics
from drl_serving.telemetry.service import TelemetryService


class HealthController(Controller):
    """For probes and for Prometheus."""

    tags = ("health",)

    @get("/health/live", operation_id="get_liveness", summary="The process answers")
    async def live(self) -> Live:
        return Live()

    @get(
        "/health/ready",
        operation_id="get_readiness",
        summary="200 with a model, 503 without one; the same members in both",
    )
    async def ready(
        self,
        models: NamedDependency[ModelHolder],
        decisions: NamedDependency[DecisionEngine],
        telemetry: NamedDependency[TelemetryService],
    ) -> Response[Ready]:
        manifest = models.current.manifest if models.current else None
        state = Ready(
            status="ready" if manifest else "no-model",
            model_version=manifest.model_version if manifest else None,
            sequence=manifest.sequence if manifest else None,
            model_key_trusted=not models.distrusted if manifest else None,
            mode=decisions.rules.mode,
            landing_writable=await asyncio.to_thread(telemetry.writable),
            episodes=len(decisions.episodes),
        )
        headers = {} if manifest else {"Retry-After": "5"}
        return Response(state, status_code=200 if manifest else 503, headers=headers)

    @get(
        "/metrics",
        operation_id="get_metrics",
        summary="Metrics in Prometheus' text format",
        media_type=CONTENT_TYPE_LATEST,
    )
    async def metrics(self, metrics: NamedDependency[Metrics]) -> Response[bytes]:
        text = await asyncio.to_thread(metrics.exposition)
        return Response(text, media_type=CONTENT_TYPE_LATEST)
