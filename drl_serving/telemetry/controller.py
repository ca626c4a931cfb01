"""`POST /v1/telemetry`."""

import asyncio

import msgspec
from litestar import Controller, post
from litestar.di import NamedDependency

from drl_serving.access.guards import requires
from drl_serving.http import openapi, request_body
from drl_serving.http.problems import Problem
from drl_serving.observability.metrics import Metrics
from drl_serving.telemetry.schemas import AcceptedTelemetry
from drl_serving.telemetry.service import TelemetryService


class TelemetryController(Controller):
    """Take telemetry in for learning."""

    path = "/v1/telemetry"
    tags = ("telemetry",)
    guards = (requires("ingest"),)

    @post(
        operation_id="ingest_telemetry",
        summary="Land one event, a list of events, JSON lines, or protocol buffers",
        description=(
            "202 means that the accepted events are on disk. Refused records do not stop the rest; "
            "they are kept as dead letters with their reasons. Sending an event again is harmless. "
            "JSON lines may be sent as a stream of any length (chunked): each part is on disk "
            "before the next one is read, and the answer counts them all. `application/x-protobuf` "
            "takes a `drl.telemetry.Events` of drl_core/protos/telemetry.proto."
        ),
        status_code=202,
        operation_class=openapi.TelemetryOperation,
        responses=openapi.problems(400, 408, 413, 415, 422, 503),
    )
    async def ingest(
        self,
        request: request_body.BoundedRequest,
        limits: NamedDependency[request_body.Limits],
        telemetry: NamedDependency[TelemetryService],
        metrics: NamedDependency[Metrics],
    ) -> AcceptedTelemetry:
        kind = request_body.content_type(
            request, request_body.JSON, *request_body.JSON_LINES, request_body.PROTOBUF
        )
        is_lines, pause_s = kind in request_body.JSON_LINES, limits.timeout_s
        if is_lines and "content-length" not in request.headers:
            result = await telemetry.stream(request.unbounded_stream(), pause_s)
        else:
            async with asyncio.timeout(pause_s):
                result = await telemetry.ingest(await request.body(), kind)
        metrics.landed.inc(result.accepted)
        metrics.dead_letters.inc(result.refused)
        if result.accepted == 0:
            first = result.refusals[0]
            raise Problem(
                422,
                "all-records-refused",
                f"record {first.record}: {first.field}: {first.reason}",
                "Fix the named fields; /schema describes an event.",
                field=first.field,
                extra=msgspec.to_builtins(result),
            )
        return result
