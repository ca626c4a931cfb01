"""`GET /v1/patterns` and `POST /v1/patterns/search`."""

import datetime as dt
from typing import Annotated, Any

from litestar import Controller, Request, get, post
from litestar.di import NamedDependency
from litestar.params import Parameter

from drl_core.patterns import MAX_LIMIT, AttackPattern
from drl_serving import bodies, openapi
from drl_serving.patterns.schemas import NearestQuery, Neighbour
from drl_serving.patterns.service import Patterns
from drl_serving.problems import Problem


class PatternController(Controller):
    """Look up what released policies learned."""

    path = "/v1/patterns"
    tags = ("patterns",)

    @get(
        operation_id="list_patterns",
        summary="Patterns by attack type and time, newest first",
        responses=openapi.problems(400, 503),
    )
    async def find(
        self,
        patterns: NamedDependency[Patterns],
        attack_type: Annotated[str | None, Parameter(max_length=128)] = None,
        since: Annotated[dt.datetime | None, Parameter(description="Earliest, included.")] = None,
        until: Annotated[dt.datetime | None, Parameter(description="Latest, excluded.")] = None,
        limit: Annotated[int, Parameter(ge=1, le=MAX_LIMIT)] = 50,
        offset: Annotated[int, Parameter(ge=0, le=10**9)] = 0,
    ) -> list[AttackPattern]:
        attack_type = _storable(attack_type)
        since, until = _with_zone("since", since), _with_zone("until", until)
        async with patterns.store() as store:
            return await store.search(
                attack_type=attack_type, since=since, until=until, limit=limit, offset=offset
            )

    @post(
        "/search",
        operation_id="search_patterns",
        summary="The patterns nearest to a state",
        status_code=200,
        operation_class=openapi.NearestOperation,
        responses=openapi.problems(400, 413, 415, 503),
    )
    async def nearest(
        self, request: Request[Any, Any, Any], patterns: NamedDependency[Patterns]
    ) -> list[Neighbour]:
        bodies.content_type(request, bodies.JSON)
        query = bodies.decode(await request.body(), NearestQuery)
        async with patterns.store() as store:
            found = await store.nearest(query.features, query.limit)
        return [Neighbour(distance, pattern) for pattern, distance in found]


def _storable(text: str | None) -> str | None:
    """Text that PostgreSQL can hold."""
    if text is not None and "\0" in text:
        raise _bad("attack_type", "a NUL character is not accepted")
    return text


def _with_zone(field: str, when: dt.datetime | None) -> dt.datetime | None:
    """A time that says which zone it is in."""
    if when is not None and when.tzinfo is None:
        raise _bad(field, "a time zone is missing, such as 2026-11-22T12:00:00Z")
    return when


def _bad(field: str, why: str) -> Problem:
    return Problem(400, "bad-request", f"{field}: {why}", "Mend the named parameter.", field=field)
