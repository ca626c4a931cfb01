"""`POST /v1/patterns`, `GET /v1/patterns` and `POST /v1/patterns/search`."""

from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, get, post
from litestar.di import NamedDependency
from litestar.params import Parameter

from drl_core.policy.actions import ACTION_COUNT
from drl_core.storage.patterns import MAX_LIMIT
from drl_serving.access.guards import requires
from drl_serving.audit.hook import Audited
from drl_serving.http import openapi, request_body
from drl_serving.http.problems import bad_request
from drl_serving.http.query_params import FROM_0, Since, Until, moment
from drl_serving.patterns.operations import NearestOperation, NewPatternsOperation
from drl_serving.patterns.schemas import (
    MAX_CURSOR,
    NO_NUL,
    AcceptedPatterns,
    NearestQuery,
    Neighbour,
    NeighbourPage,
    NewPattern,
    PatternPage,
)
from drl_serving.patterns.search import Filter
from drl_serving.patterns.service import Patterns


class PatternController(Controller):
    """Keep and look up what released policies learned. The scope `patterns` is needed."""

    path = "/v1/patterns"
    tags = ("patterns",)
    guards = (requires("patterns"),)
    before_request = Audited("patterns.read")

    @post(
        operation_id="store_patterns",
        before_request=Audited("patterns.written"),
        summary="Keep one pattern or a list of patterns",
        description=(
            "202 means that they are on disk; they are found once the database has them, which "
            "is at once unless it is away. Sending a pattern again is harmless. `metadata` is "
            "stored encrypted."
        ),
        status_code=202,
        operation_class=NewPatternsOperation,
        responses=openapi.problems(400, 401, 403, 413, 415, 429, 503),
    )
    async def accept(
        self, request: Request[Any, Any, Any], patterns: NamedDependency[Patterns]
    ) -> AcceptedPatterns:
        request_body.content_type(request, request_body.JSON)
        body = await request.body()
        if body.lstrip(b" \t\r\n")[:1] == b"[":
            sent = request_body.decode(body, list[NewPattern])
        else:
            sent = [request_body.decode(body, NewPattern)]
        return AcceptedPatterns(await patterns.accept(sent))

    @get(
        operation_id="list_patterns",
        summary="Patterns by what they are, newest first, a page at a time",
        responses=openapi.problems(400, 401, 403, 429, 503),
    )
    async def find(
        self,
        patterns: NamedDependency[Patterns],
        attack_type: Annotated[str | None, Parameter(max_length=128, pattern=NO_NUL)] = None,
        since: Since = None,
        until: Until = None,
        sandbox_id: Annotated[str | None, Parameter(max_length=128, pattern=NO_NUL)] = None,
        action: Annotated[int | None, Parameter(ge=0, lt=ACTION_COUNT, schema_extra=FROM_0)] = None,
        min_confidence: Annotated[float | None, Parameter(ge=0, le=1, schema_extra=FROM_0)] = None,
        limit: Annotated[int, Parameter(ge=1, le=MAX_LIMIT)] = 50,
        cursor: Annotated[
            str | None, Parameter(max_length=MAX_CURSOR, description="`next` of the page before.")
        ] = None,
    ) -> PatternPage:
        wanted = Filter(
            attack_type=attack_type,
            since=moment("since", since),
            until=moment("until", until),
            sandbox_id=sandbox_id,
            action=action,
            min_confidence=_number("min_confidence", min_confidence),
        )
        async with patterns.store() as store:
            page = await store.search(wanted, limit=limit, cursor=cursor)
        return PatternPage(page.items, page.next)

    @post(
        "/search",
        operation_id="search_patterns",
        summary="The patterns nearest to a state, a page at a time",
        status_code=200,
        operation_class=NearestOperation,
        responses=openapi.problems(400, 401, 403, 413, 415, 429, 503),
    )
    async def nearest(
        self, request: Request[Any, Any, Any], patterns: NamedDependency[Patterns]
    ) -> NeighbourPage:
        request_body.content_type(request, request_body.JSON)
        query = request_body.decode(await request.body(), NearestQuery)
        asked = msgspec.structs.asdict(query)
        wanted = Filter(**{name: asked[name] for name in Filter.__struct_fields__})
        wanted = msgspec.structs.replace(
            wanted,
            since=moment("since", query.since),
            until=moment("until", query.until),
        )
        async with patterns.store() as store:
            page = await store.nearest(
                query.features, wanted, limit=query.limit, cursor=query.cursor
            )
        return NeighbourPage(
            [Neighbour(distance, pattern) for pattern, distance in page.items], page.next
        )


def _number(field: str, value: float | None) -> float | None:
    """A number, which "nan" is not, though no bound refuses it."""
    if value is not None and value != value:
        raise bad_request(field, "a number is expected")
    return value
