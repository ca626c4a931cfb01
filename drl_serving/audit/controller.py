"""`GET /v1/audit`."""

import asyncio
from typing import Annotated

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import Parameter

from drl_serving.access.guards import requires
from drl_serving.audit import log
from drl_serving.audit.log import Audit
from drl_serving.audit.schemas import AuditPage
from drl_serving.http import openapi
from drl_serving.http.cursor import CursorError
from drl_serving.http.problems import bad_request
from drl_serving.http.query_params import Since, Until, moment

MAX_LIMIT = 1000


class AuditController(Controller):
    """Who did what."""

    path = "/v1/audit"
    tags = ("audit",)
    guards = (requires("admin"),)

    @get(
        operation_id="list_audit_records",
        summary="Records of the audit log, newest first",
        responses=openapi.problems(400, 401, 403),
    )
    async def find(
        self,
        audit: NamedDependency[Audit],
        since: Since = None,
        until: Until = None,
        actor: Annotated[str | None, Parameter(max_length=300)] = None,
        action: Annotated[
            str | None, Parameter(max_length=100, description="`keys` for every `keys.…`.")
        ] = None,
        before: Annotated[
            str | None, Parameter(max_length=40, description="`next` of the page before.")
        ] = None,
        limit: Annotated[int, Parameter(ge=1, le=MAX_LIMIT)] = 100,
    ) -> AuditPage:
        try:
            return await asyncio.to_thread(
                log.read,
                audit.folder,
                since=moment("since", since),
                until=moment("until", until),
                actor=actor,
                action=action,
                before=before,
                limit=limit,
            )
        except CursorError as error:
            raise bad_request("before", str(error)) from None
