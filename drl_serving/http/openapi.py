"""OpenAPI document at /schema: title, page, bodies of events, problems."""

from dataclasses import dataclass
from typing import Any

import msgspec
from litestar.openapi import ResponseSpec
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import (
    Example,
    OpenAPIMediaType,
    Operation,
    RequestBody,
    Schema,
)
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from drl_core.policy.features import CARRY_WIDTH
from drl_core.telemetry.event import Event
from drl_serving.http.problems import PROBLEM_JSON
from drl_serving.http.request_body import JSON, JSON_LINES, OCTETS

EXAMPLE_EVENT: dict[str, Any] = {
    "sandbox_id": "sandbox-1",
    "episode_id": "invoice.exe-7f3a",
    "step": 0,
    "window_s": 1.0,
    "syscall_count": 5200,
    "file_read_count": 14,
    "file_write_count": 310,
    "network_connections": 2,
    "bytes_sent": 480000,
    "bytes_received": 1200,
    "child_processes": 1,
    "cpu_usage": 87.5,
    "memory_usage": 212,
    "registry_modification": False,
    "privilege_escalation_attempt": None,
    "code_injection_detected": False,
}


class ProblemDetails(msgspec.Struct, frozen=True):
    """RFC 9457; some problems have further members, such as `record` and `missing_from`."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None
    next: str
    """What the caller should do now."""


def problems(*statuses: int) -> dict[int, ResponseSpec]:
    """Response specifications of the problems that a route answers with."""
    return {
        status: ResponseSpec(
            ProblemDetails,
            generate_examples=False,  # random ones, by a library that takes 5 MB
            description=REASONS[status],
            media_type=PROBLEM_JSON,
        )
        for status in statuses
    }


REASONS = {
    401: "Missing or invalid credentials.",
    403: "The credentials lack the scope.",
    429: "Too many requests of this caller; Retry-After says when to try again.",
    400: "The body is not a valid event; names the field.",
    404: "Not found.",
    408: "The request did not come in time.",
    409: "The step is not the episode's next one; says what to send.",
    413: "Too many bytes or records.",
    415: "The content type is not accepted.",
    422: "Every record was refused.",
    500: "The service failed.",
    503: "Not available now; Retry-After says when to try again.",
}


def inlined(kind: type[Any]) -> Any:
    """A type's schema, as `msgspec` derives it from its contract, with nothing left to refer to.

    The framework's components hold only what it found itself, so there is no place to point at.
    """
    _, definitions = msgspec.json.schema_components([kind], ref_template="{name}")

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return inline(definitions[node["$ref"]])
        return {key: inline(value) for key, value in node.items()}

    return inline(definitions[kind.__name__])


def _event_content() -> dict[str, OpenAPIMediaType]:
    one = inlined(Event)
    listed = [EXAMPLE_EVENT, {**EXAMPLE_EVENT, "step": 1}]
    return {
        JSON: OpenAPIMediaType(
            schema=Schema(one_of=[one, Schema(type=OpenAPIType.ARRAY, items=one, min_items=1)]),
            examples={"one event": Example(value=EXAMPLE_EVENT), "a list": Example(value=listed)},
        )
    }


def _line_content() -> dict[str, OpenAPIMediaType]:
    lines = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING))
    return dict.fromkeys(JSON_LINES, lines)


@dataclass
class EventsOperation(Operation):
    """An operation whose body is one event or a list of events."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(content=_event_content(), required=True)


@dataclass
class TelemetryOperation(Operation):
    """As `EventsOperation`, JSON lines accepted as well."""

    def __post_init__(self) -> None:
        content = _event_content() | _line_content()
        self.request_body = RequestBody(content=content, required=True)


@dataclass
class CarriedOperation(Operation):
    """An operation whose body is events with the history that their caller keeps."""

    def __post_init__(self) -> None:
        carry = Schema(
            type=[OpenAPIType.ARRAY, OpenAPIType.NULL],
            items=Schema(type=OpenAPIType.NUMBER, minimum=0),
            min_items=CARRY_WIDTH,
            max_items=CARRY_WIDTH,
        )
        one = Schema(
            type=OpenAPIType.OBJECT,
            properties={"event": inlined(Event), "carry": carry},
            required=["event"],
            additional_properties=False,
        )
        several = Schema(type=OpenAPIType.ARRAY, items=one, min_items=1)
        example = Example(value={"event": EXAMPLE_EVENT})
        content = OpenAPIMediaType(
            schema=Schema(one_of=[one, several]), examples={"a first step": example}
        )
        self.request_body = RequestBody(content={JSON: content}, required=True)


@dataclass
class RowsOperation(Operation):
    """An operation whose body is raw rows of float64."""

    def __post_init__(self) -> None:
        rows = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY))
        self.request_body = RequestBody(content={OCTETS: rows}, required=True)


def config(*renderers: OpenAPIRenderPlugin) -> OpenAPIConfig:
    """The description served at /schema, by each renderer; the first is the default."""
    return OpenAPIConfig(
        title="Sandbox policy",
        version="1",
        description="Decides what to do about an artefact that runs in a sandbox.",
        use_handler_docstrings=True,
        path="/schema",
        render_plugins=renderers,
    )
