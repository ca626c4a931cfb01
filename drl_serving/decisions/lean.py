"""Single events to their decisions, in batches: what waits at one moment is decided at once."""

import asyncio

from drl_core import telemetry
from drl_core.telemetry import Event
from drl_serving.access.principal import Principal
from drl_serving.access.service import Access
from drl_serving.decisions.carried import RowDecider
from drl_serving.decisions.schemas import Decision, encode_json
from drl_serving.decisions.scoring import Caller, models_of
from drl_serving.decisions.service import DecisionService
from drl_serving.front import RawHeaders
from drl_serving.model import ModelHolder
from drl_serving.problems import Problem
from drl_serving.tracing import Trace

_JSON = (b"content-type", b"application/json")
_OCTETS = (b"content-type", b"application/octet-stream")


class Batcher:
    """Dynamic batching of single events.

    Those that came in during one turn of the event loop are one run of the graph and one
    transaction. Nobody waits for others to come: the turn ends when nothing else is ready.
    """

    def __init__(self, decisions: DecisionService, models: ModelHolder) -> None:
        self._decisions = decisions
        self._models = models
        self._waiting: list[tuple[Event, Caller, asyncio.Future[Decision]]] = []

    def decide(self, event: Event, caller: Caller) -> asyncio.Future[Decision]:
        """The decision of one event, as soon as the turn ends."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._end_turn)
        future: asyncio.Future[Decision] = loop.create_future()
        self._waiting.append((event, caller, future))
        return future

    def _end_turn(self) -> None:
        waiting = [one for one in self._waiting if not one[2].done()]  # some were given up
        self._waiting = []
        try:
            requests = [(event, caller) for event, caller, _ in waiting]
            outcomes = self._decisions.decide_each(requests, models_of(self._models))
        except Exception as error:  # told to everyone who waits
            for _, _, future in waiting:
                future.set_exception(error)
            return
        for (_, _, future), outcome in zip(waiting, outcomes, strict=True):
            if isinstance(outcome, Problem):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


class LeanDecision:
    """Answers `POST /v1/decisions` for one event: JSON to JSON, with no framework in between."""

    def __init__(self, access: Access, batcher: Batcher) -> None:
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
            Exception: what `drl_serving.problems.as_problem` maps to an answer.
        """
        self._access.require(principal, "decide")
        event = telemetry.parse(body)
        decision = await self._batcher.decide(event, Caller(principal.id, trace.trace_id))
        return [_JSON], encode_json(decision)


class LeanRows:
    """Answers `POST /v1/decisions/rows`."""

    def __init__(self, access: Access, rows: RowDecider) -> None:
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
