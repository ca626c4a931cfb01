"""Context of every console page: templates, the signed-in principal, CSRF tokens of its forms."""

import asyncio
from html import escape
from typing import Any
from urllib.parse import parse_qs

import structlog
from litestar import Request, Response

from drl_serving.access.principal import Principal, Scope
from drl_serving.access.service import AccessControl
from drl_serving.console.pages import Pages, static_url
from drl_serving.console.sessions import ConsoleSessions
from drl_serving.http.problems import Problem, as_problem

AnyRequest = Request[Any, Any, Any]

MENU: tuple[tuple[str, str, Scope | None], ...] = (
    ("/console", "Overview", None),
    ("/console/decisions", "Decisions", "review"),
    ("/console/model", "Model", None),
    ("/console/shadow", "Shadow", None),
    ("/console/patterns", "Patterns", "patterns"),
    ("/console/audit", "Audit", "admin"),
)
"""Pages, and the scope that each needs; None: any good key."""

MAX_FORM_BYTES = 16_384
"""Of a post; parsing it holds up others."""

_log = structlog.stdlib.get_logger(__name__)


class Console:
    """Renders pages for a request; in threads, since templates are loaded when first used."""

    def __init__(self, sessions: ConsoleSessions, access: AccessControl) -> None:
        self.sessions = sessions
        self.pages = Pages()
        self._access = access

    async def page(
        self, request: AnyRequest, template: str, status: int = 200, **context: Any
    ) -> Response[str]:
        """A page with the menu of whoever asked for it, as an HTML answer."""
        return await asyncio.to_thread(self._page, request, template, status, context)

    def require(self, request: AnyRequest, scope: Scope) -> None:
        """Let whoever asks go on that has a scope.

        Raises:
            Problem: 403, naming the scope.
        """
        self._access.require(principal(request), scope, client(request))

    def check_post(self, request: AnyRequest, form: dict[str, str]) -> None:
        """Let a form through that one of these pages sent.

        Raises:
            Problem: 403.
        """
        self.sessions.check_post(request.scope["headers"], form.get("token", ""))

    def _page(
        self, request: AnyRequest, template: str, status: int, context: dict[str, Any]
    ) -> Response[str]:
        who: Principal | None = request.scope["state"].get("principal")
        return self.pages.page(
            template,
            status,
            who=who,
            menu=[entry for entry in MENU if who and (not entry[2] or entry[2] in who.scopes)],
            path=request.url.path,
            signed_in=who is not None and self.sessions.required,
            token=self.sessions.token(request.scope["headers"]) if who else "",
            **context,
        )


def principal(request: AnyRequest) -> Principal:
    """The request's principal, as the gateway found it."""
    found: Principal = request.scope["state"]["principal"]
    return found


def client(request: AnyRequest) -> str | None:
    """The caller's address."""
    return request.client and request.client.host


async def form_of(request: AnyRequest) -> dict[str, str]:
    """The fields of a form that was sent; of two with one name the last."""
    body = (await request.body()).decode("utf-8", "replace")
    return {name: values[-1] for name, values in parse_qs(body).items()}


def problem_page(request: AnyRequest, error: Exception) -> Response[str]:
    """The console's exception handler: a problem as a page."""
    problem = as_problem(error)
    if problem.status >= 500 and not isinstance(error, Problem):
        _log.error("page failed", path=request.url.path, exc_info=error)
    title = escape(problem.name.replace("-", " ").capitalize())
    return Response(
        _PROBLEM.format(
            title=title,
            status=problem.status,
            detail=escape(problem.detail),
            next=escape(problem.next_step),
            css=static_url("console.css"),
            icon=static_url("icon.svg"),
        ),
        status_code=problem.status,
        media_type="text/html",
        headers=problem.headers,
    )


# without a template: nothing may be loaded on the event loop, where this is made
_PROBLEM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Sandbox policy</title>
<link rel="stylesheet" href="{css}"><link rel="icon" href="{icon}"></head>
<body><main id="content" class="narrow"><h1>{title}</h1>
<p class="problem" role="alert">{status}: {detail}</p><p>{next}</p>
<p><a href="/console">Overview</a> · <a href="/console/login">Sign in with another key</a></p>
</main></body></html>
"""
