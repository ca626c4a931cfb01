"""Routes of `POST /v1/decisions`, with history here or at the caller, and their fast paths.

Each route has a handler of the framework and, where it costs most, a fast path that the gateway
answers by (bytes in, bytes out). Both call the same code, so their answers are the same.
"""

import asyncio
import time
from typing import Any

from litestar import Controller, Request, Response, post
from litestar.di import NamedDependency

from drl_core.telemetry.event import Event, TelemetryError, parse_event
from drl_serving.access.guards import requires
from drl_serving.access.principal import Principal
from drl_serving.access.service import AccessControl
from drl_serving.decisions.engine import stateless
from drl_serving.decisions.engine.engine import INLINE, DecisionEngine
from drl_serving.decisions.engine.requests import Caller, Decided, DecisionRequest
from drl_serving.decisions.engine.stateless import RowDecider
from drl_serving.decisions.schemas import CarriedDecision, Decision, encode_json
from drl_serving.gateway.gateway import RawHeaders
from drl_serving.http import openapi, request_body
from drl_serving.observability.metrics import Metrics
from drl_serving.observability.tracing import Trace

_JSON = (b"content-type", b"application/json")
_OCTETS = (b"content-type", b"application/octet-stream")


class EventDecider:
    """Decides a body's event, or its list of events."""

    def __init__(self, decisions: DecisionEngine, limits: request_body.Limits) -> None:
        self._decisions = decisions
        self._limits = limits

    async def decide_body(self, body: bytes, caller: Caller) -> Decision | list[Decision]:
        """The decision of one event; a list of them for a list.

        Raises:
            TelemetryError: where something is no event.
            Problem: 409, 413, 500 or 503, as `DecisionEngine.submit`.
        """
        records, is_list = request_body.split(body)
        request_body.limit(len(records), self._limits.max_batch)
        if not is_list:
            return (await self.submit_event(body, caller)).answers[0]
        long = len(records) > INLINE
        events = await asyncio.to_thread(_parse, records) if long else _parse(records)
        return (await self._decisions.submit(DecisionRequest(events, caller))).answers

    def submit_event(self, body: bytes, caller: Caller) -> asyncio.Future[Decided]:
        """Submit a body that is one event."""
        return self._decisions.submit(DecisionRequest((parse_event(body),), caller))


def _parse(records: list[bytes]) -> list[Event]:
    events = [parse_event(raw, number) for number, raw in enumerate(records)]
    if not events:
        raise TelemetryError("$", "the list is empty, send at least one event")
    return events


class FastPathEvents:
    """Answers `POST /v1/decisions` in plain JSON, with no framework in between."""

    def __init__(self, access: AccessControl, decider: EventDecider) -> None:
        self._access = access
        self._decider = decider

    def takes(self, media: bytes, body: bytes) -> bool:
        """JSON that does not begin as an object or a list is left to the framework."""
        return media == b"application/json" and body[:1] in (b"{", b"[")

    async def __call__(
        self, body: bytes, headers: RawHeaders, principal: Principal, trace: Trace
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Decide.

        Raises:
            Exception: what `drl_serving.http.problems.as_problem` maps to an answer.
        """
        self._access.require(principal, "decide")
        caller = Caller(principal.id, trace.trace_id)
        if body[:1] == b"{":
            return [_JSON], encode_json((await self._decider.submit_event(body, caller)).answers[0])
        return [_JSON], encode_json(await self._decider.decide_body(body, caller))


class FastPathRows:
    """Answers `POST /v1/decisions/rows`."""

    def __init__(self, access: AccessControl, rows: RowDecider) -> None:
        self._access = access
        self._rows = rows

    def takes(self, media: bytes, body: bytes) -> bool:
        """Rows as they are."""
        return media == b"application/octet-stream"

    async def __call__(
        self, body: bytes, headers: RawHeaders, principal: Principal, trace: Trace
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Decide.

        Raises:
            Problem: 400, 403, 413, 500 or 503.
        """
        self._access.require(principal, "decide")
        about, content = await self._rows.decide_body(body)
        named = [(name.lower().encode(), text.encode()) for name, text in about.items()]
        return [*named, _OCTETS], content


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
    async def decide_events(
        self,
        request: Request[Any, Any, Any],
        event_decider: NamedDependency[EventDecider],
        metrics: NamedDependency[Metrics],
    ) -> Decision | list[Decision]:
        request_body.content_type(request, request_body.JSON)
        body = await request.body()
        began = time.perf_counter()
        answer = await event_decider.decide_body(body, _caller(request))
        metrics.decision_seconds.observe(time.perf_counter() - began)
        return answer

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
        decisions: NamedDependency[DecisionEngine],
    ) -> list[CarriedDecision]:
        request_body.content_type(request, request_body.JSON)
        body = await request.body()
        records, _ = request_body.split(body)
        request_body.limit(len(records), limits.max_batch)
        decisions.models()  # 503 before any reading
        asked = await asyncio.to_thread(stateless.carried_request, records, _caller(request))
        decided = await decisions.submit(asked)
        return [
            CarriedDecision(decision=answer, carry=decided.scored[place].after.tolist())
            for place, answer in enumerate(decided.answers)
        ]

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
        headers, content = await row_decider.decide_body(await request.body())
        return Response(content, media_type=request_body.OCTETS, headers=headers)


def _caller(request: Request[Any, Any, Any]) -> Caller:
    state = request.scope["state"]
    return Caller(state["principal"].id, state["trace"].trace_id)
