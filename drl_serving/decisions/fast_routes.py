"""Decisions before the framework: the routes of one event and of raw rows, bytes in and out."""

from drl_core.telemetry.event import parse_event
from drl_serving.access.principal import Principal
from drl_serving.access.service import AccessControl
from drl_serving.decisions.engine.batcher import Batcher
from drl_serving.decisions.engine.scoring import Caller
from drl_serving.decisions.engine.stateless import RowDecider
from drl_serving.decisions.schemas import encode_json
from drl_serving.gateway.gateway import RawHeaders
from drl_serving.observability.tracing import Trace

_JSON = (b"content-type", b"application/json")
_OCTETS = (b"content-type", b"application/octet-stream")


class LeanDecision:
    """Answers `POST /v1/decisions` for one event: JSON to JSON, with no framework in between."""

    def __init__(self, access: AccessControl, batcher: Batcher) -> None:
        self._access = access
        self._batcher = batcher

    def takes(self, media: bytes, body: bytes) -> bool:
        """Lists, and JSON that does not begin as an object, are left to the framework."""
        return media == b"application/json" and body[:1] == b"{"

    async def __call__(
        self, body: bytes, headers: RawHeaders, principal: Principal, trace: Trace
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Decide.

        Raises:
            Exception: what `drl_serving.http.problems.as_problem` maps to an answer.
        """
        self._access.require(principal, "decide")
        event = parse_event(body)
        decision = await self._batcher.decide(event, Caller(principal.id, trace.trace_id))
        return [_JSON], encode_json(decision)


class LeanRows:
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
        about, content = await self._rows.decide(body)
        named = [(name.lower().encode(), text.encode()) for name, text in about.items()]
        return [*named, _OCTETS], content
