"""Request bodies: content type and size are checked, then split into raw JSON records.

The records are parsed by `drl_core.telemetry.event`, the same parser that every other source uses.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from litestar import Request

from drl_core.telemetry.event import TelemetryError
from drl_serving.http.problems import Problem

JSON = "application/json"
OCTETS = "application/octet-stream"
PROTOBUF = "application/x-protobuf"
JSON_LINES = ("application/x-ndjson", "application/jsonl")

T = TypeVar("T")


@dataclass
class Limits:
    """Of one request; may change while running."""

    max_batch: int
    """Records."""
    max_body_bytes: int = 16 << 20
    timeout_s: float = 30.0
    """To receive the request and to answer it."""


_records = msgspec.json.Decoder(list[msgspec.Raw])


def content_type(request: Request[Any, Any, Any], *accepted: str) -> str:
    """The request's content type without parameters.

    Raises:
        Problem: 415 where it is not accepted, or the body is compressed.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise Problem(
            415,
            "unsupported-content-encoding",
            f"the content encoding is {encoding[:100]}; bodies are taken as they are",
            "Send the body uncompressed.",
            field="Content-Encoding",
        )
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given in accepted:
        return given
    raise Problem(
        415,
        "unsupported-media-type",
        f"the content type is {given or 'missing'}; accepted: {', '.join(accepted)}",
        f"Send the header Content-Type: {accepted[0]}.",
        field="Content-Type",
    )


class BoundedRequest(Request[Any, Any, Any]):
    """A request whose body has at most `Limits.max_body_bytes`, as they are at that moment.

    The framework's own limit (`request_max_body_size`) is fixed when the application is built.
    """

    def unbounded_stream(self) -> AsyncGenerator[bytes, None]:
        """The body in chunks, for who keeps none of them."""
        return super().stream()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body in chunks; `body` and the like read it.

        Raises:
            Problem: 413, before more is held.
        """
        most = self.app.state["limits"].max_body_bytes
        size = self.content_length or 0
        if size <= most:
            size = 0
            async for chunk in super().stream():
                size += len(chunk)
                if size > most:
                    break
                yield chunk
        if size > most:
            raise Problem(
                413,
                "request-entity-too-large",
                f"a body of more than {most} bytes",
                "Send less in one request, or telemetry as a stream of JSON lines.",
            )


def split(body: bytes) -> tuple[list[bytes], bool]:
    """The JSON values of a body, unparsed, and whether they came as a list.

    Raises:
        TelemetryError: where the body is neither a JSON list nor anything else to be parsed.
    """
    if not body.strip():
        raise TelemetryError("$", "the body is empty, a JSON object or list of events is expected")
    if body.lstrip(b" \t\r\n")[:1] != b"[":
        return [body], False
    try:
        return [bytes(raw) for raw in _records.decode(body)], True
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise TelemetryError("$", f"not a JSON list: {cause}") from None


def decode(body: bytes, kind: type[T]) -> T:
    """A body that is one JSON object of a given type.

    Raises:
        Problem: 400, naming the field.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        message, _, path = str(cause).partition(" - at `$")
        field = path.strip(".`") or "$"
        raise Problem(
            400,
            "invalid-body",
            f"{field}: {message}",
            "Fix the named field and send the request again; /schema describes it.",
            field=field,
        ) from None


def limit(records: int, most: int) -> None:
    """Refuse more records than one request may hold.

    Raises:
        Problem: 413.
    """
    if records > most:
        raise Problem(
            413,
            "too-many-records",
            f"{records} records in one request, at most {most} are accepted",
            f"Send at most {most} records a request.",
        )
