"""`GET /v1/decisions/log`, one decision, its lineage, and the live feed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Controller, Request, get
from litestar.di import NamedDependency
from litestar.params import FromPath, Parameter
from litestar.response import ServerSentEvent, ServerSentEventMessage

from drl_serving.access.guards import requires
from drl_serving.audit.hook import Audited
from drl_serving.decisions.schemas import DecisionPage, JournalEntry, Lineage
from drl_serving.decisions.state.decision_reader import DecisionReader
from drl_serving.decisions.state.journal import Journal
from drl_serving.decisions.state.log_store import MAX_LIMIT
from drl_serving.http import openapi
from drl_serving.http.problems import Problem
from drl_serving.http.query_params import FROM_0, Since, Until, moment

FEED_S = 0.25
HEARTBEAT_S = 15.0
MAX_FEEDS = 100
"""Readers of the live feed, in one worker."""


class Feeds:
    """The open live feeds of one worker."""

    def __init__(self) -> None:
        self._open = 0

    def enter(self) -> None:
        """Count one more.

        Raises:
            Problem: 503 where there are too many.
        """
        if self._open >= MAX_FEEDS:
            raise Problem(
                503,
                "too-many-feeds",
                f"{MAX_FEEDS} live feeds are open",
                "Close one, or try again later.",
                retry_after_s=10,
            )
        self._open += 1

    async def follow(self, journal: Journal, number: int) -> AsyncIterator[ServerSentEventMessage]:
        """Entries above a number, as they come."""
        try:
            quiet = 0.0
            yield ServerSentEventMessage(comment="decisions follow")
            while True:
                entries = journal.after(min(number, journal.last()), 200)
                for number, entry in entries:
                    data = msgspec.json.encode(entry).decode()
                    yield ServerSentEventMessage(data=data, id=number, event="decision")
                quiet = 0.0 if entries else quiet + FEED_S
                if quiet >= HEARTBEAT_S:
                    quiet = 0.0
                    yield ServerSentEventMessage(comment="still here")
                await asyncio.sleep(FEED_S)
        finally:
            self._open -= 1


class DecisionLogController(Controller):
    """Read what was decided."""

    path = "/v1/decisions"
    tags = ("decisions",)
    guards = (requires("review"),)
    before_request = Audited("decision.read")

    @get(
        "/log",
        operation_id="list_decisions",
        summary="Logged decisions, newest first",
        responses=openapi.problems(400, 401, 403, 503),
    )
    async def page(
        self,
        reader: NamedDependency[DecisionReader],
        sandbox_id: Annotated[str | None, Parameter(max_length=128)] = None,
        episode_id: Annotated[str | None, Parameter(max_length=256)] = None,
        since: Since = None,
        until: Until = None,
        action: Annotated[int | None, Parameter(ge=0, le=4, schema_extra=FROM_0)] = None,
        limit: Annotated[int, Parameter(ge=1, le=MAX_LIMIT)] = 50,
        cursor: Annotated[str | None, Parameter(max_length=200)] = None,
    ) -> DecisionPage:
        return await reader.page(
            sandbox_id=_storable("sandbox_id", sandbox_id),
            episode_id=_storable("episode_id", episode_id),
            since=moment("since", since),
            until=moment("until", until),
            action=action,
            limit=limit,
            cursor=cursor,
        )

    @get(
        "/live",
        operation_id="follow_decisions",
        summary="Decisions of all workers as they are made (server-sent events)",
        media_type="text/event-stream",
        responses=openapi.problems(401, 403, 503),
    )
    async def live(
        self,
        request: Request[Any, Any, Any],
        journal: NamedDependency[Journal],
        feeds: NamedDependency[Feeds],
    ) -> ServerSentEvent:
        since = request.headers.get("last-event-id", "")
        number = int(since) if since.isdecimal() and len(since) < 19 else journal.last()
        feeds.enter()
        return ServerSentEvent(feeds.follow(journal, number))

    @get(
        "/{decision_id:uuid}",
        operation_id="get_decision",
        summary="One decision as it was made",
        responses=openapi.problems(401, 403, 404, 503),
    )
    async def find(
        self, decision_id: FromPath[UUID], reader: NamedDependency[DecisionReader]
    ) -> JournalEntry:
        return await reader.find(decision_id)

    @get(
        "/{decision_id:uuid}/lineage",
        operation_id="get_lineage",
        summary="From a decision back to the telemetry that taught its model",
        description=(
            "Names the model, its checkpoint, the Dagster run, and the telemetry batches; `window` "
            "and `carry` are the inputs, so that the decision can be made again."
        ),
        responses=openapi.problems(401, 403, 404, 503),
    )
    async def lineage(
        self, decision_id: FromPath[UUID], reader: NamedDependency[DecisionReader]
    ) -> Lineage:
        return await reader.lineage(decision_id)


def _storable(field: str, text: str | None) -> str | None:
    """Text that PostgreSQL can hold."""
    if text is not None and "\0" in text:
        raise _bad(field, "a NUL character is not accepted")
    return text


def _bad(field: str, why: str) -> Problem:
    return Problem(400, "bad-request", f"{field}: {why}", "Fix the named parameter.", field=field)
