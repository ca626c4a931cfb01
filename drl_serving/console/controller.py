"""`/console`: sign in and out, the overview, the audit log, and the files that pages load."""

import asyncio
from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from litestar.response import Redirect

from drl_serving.access.guards import requires
from drl_serving.audit import log
from drl_serving.audit.log import Audit
from drl_serving.console import pages
from drl_serving.console.health import Overview
from drl_serving.console.page_context import (
    MAX_FORM_BYTES,
    Console,
    client,
    form_of,
    principal,
    problem_page,
)
from drl_serving.console.sessions import require_same_origin
from drl_serving.http.cursor import CursorError
from drl_serving.http.problems import Problem

AUDIT_PAGE = 50


class ConsoleController(Controller):
    """Sign-in, overview and audit log."""

    path = "/console"
    include_in_schema = False
    request_max_body_size = MAX_FORM_BYTES
    exception_handlers = {Exception: problem_page}  # noqa: RUF012 - as the framework reads it

    @get("/static/{name:str}", operation_id="console_static", sync_to_thread=True)
    def static(self, name: FromPath[str]) -> Response[bytes]:
        if name not in pages.STATIC:
            raise Problem(404, "not-found", "there is no such file", "Load the page again.")
        # the file's address changes with its content
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        content = pages.static_file(name)
        return Response(content, media_type=pages.STATIC[name], headers=headers)

    @get("/login", operation_id="console_login_page")
    async def login_page(
        self, request: Request[Any, Any, Any], console: NamedDependency[Console]
    ) -> Response[str] | Redirect:
        if not console.sessions.required:
            return Redirect("/console", status_code=303)
        return await console.page(request, "login.html", problem=None)

    @post("/login", operation_id="console_login", status_code=303)
    async def login(
        self,
        request: Request[Any, Any, Any],
        console: NamedDependency[Console],
        audit: NamedDependency[Audit],
    ) -> Response[Any]:
        require_same_origin(request.scope["headers"])
        form = await form_of(request)
        sent, address = form.get("key", ""), client(request)
        try:
            cookie = await asyncio.to_thread(console.sessions.start, sent, address)
        except Problem as problem:
            page = await console.page(request, "login.html", problem.status, problem=problem)
            page.headers |= problem.headers
            page.headers.pop("WWW-Authenticate", None)  # browsers would ask for a password
            return page
        key_id = sent.strip().split("_")[1]
        audit.record("console.signed_in", actor=f"key:{key_id}", client=address)
        return Redirect("/console", status_code=303, headers={"Set-Cookie": cookie})

    @post("/logout", operation_id="console_logout", status_code=303)
    async def logout(
        self,
        request: Request[Any, Any, Any],
        console: NamedDependency[Console],
        audit: NamedDependency[Audit],
    ) -> Redirect:
        console.check_post(request, await form_of(request))
        audit.record("console.signed_out", actor=principal(request).id, client=client(request))
        headers = {"Set-Cookie": console.sessions.end()}
        return Redirect("/console/login", status_code=303, headers=headers)

    @get(operation_id="console_overview")
    async def overview(
        self,
        request: Request[Any, Any, Any],
        console: NamedDependency[Console],
        overview: NamedDependency[Overview],
    ) -> Response[str]:
        template = "_health.html" if pages.by_htmx(request) else "overview.html"
        return await console.page(request, template, health=await overview.read())

    @get("/audit", operation_id="console_audit", guards=[requires("admin")])
    async def audit_page(
        self,
        request: Request[Any, Any, Any],
        console: NamedDependency[Console],
        audit: NamedDependency[Audit],
        actor: FromQuery[str] = "",
        action: FromQuery[str] = "",
        before: FromQuery[str] = "",
    ) -> Response[str]:
        try:
            found = await asyncio.to_thread(
                log.read,
                audit.folder,
                actor=actor or None,
                action=action or None,
                before=before or None,
                limit=AUDIT_PAGE,
            )
        except CursorError as error:
            raise Problem(400, "bad-request", str(error), "Go back to the newest.") from None
        asked = {"actor": actor, "action": action}
        return await console.page(request, "audit.html", found=found, asked=asked)
