"""`POST /v1/decisions`, and the forms of it for callers that keep the history themselves."""

import asyncio
import time
from typing import Any

from litestar import Controller, Request, Response, post
from litestar.di import NamedDependency

from drl_core.telemetry.event import TelemetryError, parse_event
from drl_serving.access.guards import requires
from drl_serving.decisions.engine import stateless
from drl_serving.decisions.engine.batcher import Batcher
from drl_serving.decisions.engine.scoring import Caller, models_of
from drl_serving.decisions.engine.service import DecisionService
from drl_serving.decisions.engine.stateless import RowDecider
from drl_serving.decisions.schemas import CarriedDecision, Decision
from drl_serving.http import openapi, request_body
from drl_serving.models.holder import ModelHolder
from drl_serving.observability.metrics import Metrics

INLINE = 16
"""Events that are decided on the event loop; more of them go to a thread."""


class DecisionController(Controller):
    """Decide what to do about running artefacts."""

    path = "/v1/decisions"
    tags = ("decisions",)
    guards = (requires("decide"),)

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
        limits: NamedDependency[request_body.Limits],
        models: NamedDependency[ModelHolder],
        decisions: NamedDependency[DecisionService],
        batcher: NamedDependency[Batcher],
        metrics: NamedDependency[Metrics],
    ) -> Decision | list[Decision]:
        request_body.content_type(request, request_body.JSON)
        body = await request.body()
        began = time.perf_counter()
        records, is_list = request_body.split(body)
        request_body.limit(len(records), limits.max_batch)
        caller = _caller(request)
        if not is_list:
            decision = await batcher.decide(parse_event(records[0]), caller)
            metrics.decision_seconds.observe(time.perf_counter() - began)
            return decision

        def decide() -> list[Decision]:
            events = [parse_event(raw, number) for number, raw in enumerate(records)]
            if not events:
                raise TelemetryError("$", "the list is empty, send at least one event")
            return decisions.decide(events, models_of(models), caller).answers

        answers = decide() if len(records) <= INLINE else await asyncio.to_thread(decide)
        metrics.decision_seconds.observe(time.perf_counter() - began)
        return answers

    @post(
        "/carried",
        operation_id="decide_carried",
        summary="Decide events whose history the caller keeps",
        description=(
            "Nothing is kept here: each event comes with the `carry` that the answer to the step "
            "before gave, and gets the next one. At step 0 it is left out."
        ),
        status_code=200,
        operation_class=openapi.CarriedOperation,
        responses=openapi.problems(400, 409, 413, 415, 500, 503),
    )
    async def decide_carried(
        self,
        request: Request[Any, Any, Any],
        limits: NamedDependency[request_body.Limits],
        models: NamedDependency[ModelHolder],
        decisions: NamedDependency[DecisionService],
    ) -> list[CarriedDecision]:
        request_body.content_type(request, request_body.JSON)
        body = await request.body()
        records, _ = request_body.split(body)
        request_body.limit(len(records), limits.max_batch)
        return await asyncio.to_thread(
            stateless.decide, records, models_of(models), decisions, _caller(request)
        )

    @post(
        "/rows",
        operation_id="decide_rows",
        summary="Decide raw float rows",
        description=(
            "Little-endian float64 rows of 28: the window's 14 numbers, then the carry's 14. The "
            "answer has a row of 20 for each: action, five Q-values, the next carry. The model's "
            "version is in the header `X-Model-Version`."
        ),
        status_code=200,
        operation_class=openapi.RowsOperation,
        responses=openapi.problems(400, 413, 415, 500, 503),
        media_type=request_body.OCTETS,
    )
    async def decide_rows(
        self,
        request: Request[Any, Any, Any],
        row_decider: NamedDependency[RowDecider],
    ) -> Response[bytes]:
        request_body.content_type(request, request_body.OCTETS)
        headers, content = await row_decider.decide(await request.body())
        return Response(content, media_type=request_body.OCTETS, headers=headers)


def _caller(request: Request[Any, Any, Any]) -> Caller:
    state = request.scope["state"]
    return Caller(state["principal"].id, state["trace"].trace_id)
