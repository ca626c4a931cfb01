"""The gateway: ASGI middleware that every request passes once, before any routing.

It sheds load, authenticates, begins the trace, bounds the time, and puts the same headers on every
response. The few routes that models are asked by have a fast path: they are answered right here,
since routing and serialising by the framework cost more than the decision. Everything else, and
whatever is unusual about those, goes on to the application; both ways give the same bytes.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from drl_serving.access.principal import Principal
from drl_serving.access.service import AccessControl, is_loopback
from drl_serving.gateway.load_shedding import REFUSAL_DELAY_S, LoadShedder, LoopTurn, Overloaded
from drl_serving.http.problems import PROTOCOL, Problem, as_problem, with_error
from drl_serving.http.security_headers import HeaderPairs
from drl_serving.observability import tracing
from drl_serving.observability.metrics import Metrics
from drl_serving.observability.otlp_exporter import SpanExporter
from drl_serving.observability.tracing import Trace

OPEN = ("/health/", "/metrics", "/v2/health/", "/schema", "/console/login", "/console/static/")
"""Paths that need no credentials, and that no load sheds."""
_STREAMS = ("/v1/telemetry", "/v1/decisions/live")
"""They bound the time of each part by themselves, and last: they are not counted as in flight."""
_DECISIONS = "/v1/decisions"
_CONSOLE = "/console"
_SAFE = ("GET", "HEAD", "OPTIONS")
_UNROUTED = "gateway"
"""The label `route` of what is answered before routing."""

RawHeaders = Iterable[tuple[bytes, bytes]]


class GatewayHeaders(NamedTuple):
    """Headers of every response that does not have them already."""

    data: HeaderPairs
    page: HeaderPairs
    """On HTML."""


class FastPathRoute(Protocol):
    """A POST of one path that is answered without the framework."""

    def takes(self, media: bytes, body: bytes) -> bool:
        """Whether it answers a body of this content type; otherwise the framework does."""

    async def __call__(
        self, body: bytes, headers: RawHeaders, principal: Principal, trace: Trace
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """The response's own headers, and its body; raises what `as_problem` knows."""


ConsoleAuthenticator = Callable[[RawHeaders], Principal]
"""A console request's headers -> its principal; raises a `Problem` that leads to the sign-in."""


class Gateway:
    """An ASGI application around the service's own.

    Args:
        app: the framework's application.
        access: authenticates, and limits the rate of each caller.
        metrics: counts and times.
        spans: exports the traces that are sampled; None exports none.
        fast_paths: the routes that are answered here, by path.
        headers: of every response.
        console: authenticates requests of the console; None: as all others.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: AccessControl,
        metrics: Metrics,
        spans: SpanExporter | None,
        fast_paths: Mapping[str, FastPathRoute],
        headers: GatewayHeaders,
        console: ConsoleAuthenticator | None = None,
    ) -> None:
        self.app = app
        self._access = access
        self._metrics = metrics
        self._spans = spans
        self._fast_paths = fast_paths
        self._headers = headers
        self._console = console
        self.timeout_s = 30.0
        self.max_body = 0
        self.trace_share = 0.0
        self.shedder = LoadShedder(metrics.shed.inc)
        self._turn = LoopTurn()
        self._running: dict[asyncio.Task[None], float] = {}
        self._overdue: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            await self._request(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def cancel_overdue_requests(self) -> None:
        """Once a second, until cancelled: end requests that are above the time limit."""
        while True:
            await asyncio.sleep(1.0)
            latest = time.perf_counter() - self.timeout_s
            for task, began in list(self._running.items()):
                if began < latest and task not in self._overdue:
                    self._overdue.add(task)
                    task.cancel()

    async def _request(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        trace = tracing.begin(scope["headers"], self.trace_share)
        response = _ResponseSender(send, self._headers, trace)
        scope["state"]["trace"], scope["state"]["began"] = trace, began
        try:
            if not scope["path"].startswith(OPEN):
                self._metrics.queue_seconds.observe(self._turn.elapsed(began))
                self.shedder.check()
                self._authenticate(scope)
            if scope["path"] in _STREAMS:
                await self.app(scope, receive, response)
            else:
                await self._timed(scope, receive, response, began)
        except Problem as problem:
            if isinstance(problem, Overloaded):
                await asyncio.sleep(REFUSAL_DELAY_S)
            await self._send_problem(scope, response, problem)
        if self._spans is not None and trace.sampled:
            route = scope.get("path_template") or self._label(scope["path"])
            took = time.perf_counter() - began
            self._spans.request(trace, scope["method"], route, response.status, took)

    async def _timed(
        self, scope: HTTPScope, receive: Receive, response: "_ResponseSender", began: float
    ) -> None:
        """Answer within the time limit.

        Raises:
            Problem: 408 where it took too long, 503 above the in-flight limit.
        """
        task: Any = asyncio.current_task()
        self._running[task] = began
        try:
            route = self._fast_paths.get(scope["path"])
            if route is not None and scope["method"] == "POST":
                await self._fast_path(route, scope, receive, response, began)
            elif scope["path"].startswith(OPEN):
                await self.app(scope, receive, response)
            else:
                with self.shedder:
                    await self.app(scope, receive, response)
        except asyncio.CancelledError:
            if task not in self._overdue or response.status:
                raise  # the service ends; or it is too late to say anything, and uvicorn hangs up
            task.uncancel()
            raise _too_slow(self.timeout_s) from None
        finally:
            del self._running[task]
            self._overdue.discard(task)

    def _authenticate(self, scope: HTTPScope) -> None:
        """Put the request's principal into its state.

        Raises:
            Problem: 401, 403 or 429 where it is refused.
        """
        if self._console is not None and scope["path"].startswith(_CONSOLE):
            principal = self._console(scope["headers"])  # by its cookie, which opens nothing else
        else:
            client = scope["client"]
            principal = self._access.authenticate(scope["headers"], client[0] if client else None)
        if principal.kind == "anonymous" and scope["method"] not in _SAFE:
            _require_no_other_site(scope)
        self._access.admit(principal)
        scope["state"]["principal"] = principal

    async def _fast_path(
        self,
        route: FastPathRoute,
        scope: HTTPScope,
        receive: Receive,
        response: "_ResponseSender",
        began: float,
    ) -> None:
        """Answer what the route takes; hand anything else on, with its body still to be read."""
        messages, body = await self._read(receive)  # before it is in flight: senders may be slow
        media = _media(scope)
        with self.shedder:
            if body is None or media is None or not route.takes(media, body):
                await self.app(scope, _replay(messages, receive), response)
                return
            state, path = scope["state"], scope["path"]
            try:
                headers, content = await route(
                    body, scope["headers"], state["principal"], state["trace"]
                )
            except Exception as error:
                await self._send_problem(scope, response, as_problem(error))
                return
            took = time.perf_counter() - began
            if path == _DECISIONS:
                self._metrics.decision_seconds.observe(took)
            self._metrics.requests.labels("POST", path, "200").inc(1)
            self._metrics.request_seconds.labels(path).observe(took)
            await response.send(200, headers, content)

    async def _read(self, receive: Receive) -> tuple[list[Any], bytes | None]:
        """A request's messages and its body; None where it is too large, or not all came."""
        messages: list[Any] = []
        size, more = 0, True
        while more:
            message: Any = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size > self.max_body or message["type"] != "http.request":
                return messages, None
        return messages, messages[0].get("body", b"") if len(messages) == 1 else b"".join(
            message.get("body", b"") for message in messages
        )

    async def _send_problem(
        self, scope: HTTPScope, response: "_ResponseSender", problem: Problem
    ) -> None:
        self._metrics.answered(scope["method"], self._label(scope["path"]), problem.status)
        if scope["path"].startswith(PROTOCOL):
            problem = with_error(problem)
        await response.send(problem.status, problem.raw_headers(), problem.body())

    def _label(self, path: str) -> str:
        return path if path in self._fast_paths else _UNROUTED


class _ResponseSender:
    """A request's `send`, with this service's headers on the response."""

    def __init__(self, send: Send, headers: GatewayHeaders, trace: Trace) -> None:
        self._send = send
        self._headers = headers
        self._trace = trace
        self.status = 0
        """0 until the response has begun."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            given = dict(headers)
            page = given.get(b"content-type", b"").startswith(b"text/html")
            ours = self._headers.page if page else self._headers.data
            headers += [pair for pair in ours if pair[0] not in given]
            headers.append((b"traceparent", self._trace.header))
            message["headers"] = headers
        await self._send(message)

    async def send(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole response."""
        self.status = status
        headers += (
            (b"content-length", b"%d" % len(body)),
            *self._headers.data,
            (b"traceparent", self._trace.header),
        )
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


def _media(scope: HTTPScope) -> bytes | None:
    """The content type, empty where it is missing; None where the body is encoded."""
    media = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            media = value
        elif name == b"content-encoding":
            return None
    return media


def _require_no_other_site(scope: HTTPScope) -> None:
    """Where nobody needs credentials, a page of another site must not act through a browser here.

    Raises:
        Problem: 403 where the request says that it comes from one.
    """
    for name, value in scope["headers"]:
        if name == b"sec-fetch-site" and value in (b"cross-site", b"same-site"):
            raise _other_site()
        if name == b"origin" and not is_loopback(urlsplit(value.decode("latin-1")).hostname or ""):
            raise _other_site()


def _other_site() -> Problem:
    return Problem(
        403,
        "other-site",
        "a page of another site sent this request through a browser",
        "Use the service's own console, or configure credentials: `drl keys create --name NAME`.",
    )


def _replay(messages: list[Any], receive: Receive) -> Receive:
    """`receive`, with messages that were taken already put back in front."""
    taken = iter(messages)

    async def receiving() -> Any:
        for message in taken:
            return message
        return await receive()

    return receiving


def _too_slow(seconds: float) -> Problem:
    return Problem(
        408,
        "request-timeout",
        f"the request was not received and answered within {seconds:g} s",
        "Send it again in one go, smaller if need be.",
    )
