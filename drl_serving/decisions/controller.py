"""`POST /v1/decisions`."""

import time
from typing import Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency

from drl_core import telemetry
from drl_core.settings import Settings
from drl_serving import bodies, openapi
from drl_serving.decisions.schemas import Decision
from drl_serving.decisions.service import DecisionService
from drl_serving.metrics import Metrics
from drl_serving.model import ModelHolder
from drl_serving.models.service import require_model


class DecisionController(Controller):
    """Decide what to do about running artefacts."""

    path = "/v1/decisions"
    tags = ("decisions",)

    @post(
        operation_id="decide",
        summary="Decide one event, or a list of events",
        description=(
            "The service keeps each episode's history: send its events from step 0, one by one or "
            "as a list. The last step sent again gets the same decision again. A list is decided "
            "whole or not at all. A single event gets one decision, a list gets a list."
        ),
        status_code=200,
        operation_class=openapi.EventsOperation,
        responses=openapi.problems(400, 409, 413, 415, 500, 503),
    )
    async def decide(
        self,
        request: Request[Any, Any, Any],
        settings: NamedDependency[Settings],
        models: NamedDependency[ModelHolder],
        decisions: NamedDependency[DecisionService],
        metrics: NamedDependency[Metrics],
    ) -> Decision | list[Decision]:
        bodies.content_type(request, bodies.JSON)
        body = await request.body()
        began = time.perf_counter()
        records, is_list = bodies.split(body)
        bodies.limit(len(records), settings.serving.max_batch)
        events = [
            telemetry.parse(raw, number if is_list else None) for number, raw in enumerate(records)
        ]
        if not events:
            raise telemetry.TelemetryError("$", "the list is empty, at least one event is expected")
        model = require_model(models)  # read once: version and Q-values always match
        decided = decisions.decide(events, model)
        for decision in decided.new:  # a redelivery is not a second decision
            metrics.actions.labels(decision.action_name).inc()
        metrics.decision_seconds.observe(time.perf_counter() - began)
        return decided.answers if is_list else decided.answers[0]
