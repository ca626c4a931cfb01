"""The door: every request passes it once, before any routing.

It sheds what would wait too long, says who asks, begins the trace, bounds the time, and puts the
same headers on every answer. The few routes that models are asked by are answered right here, since
routing and serialising by the framework cost more than the decision; everything else, and whatever
is unusual about those, goes on to the application. Both ways give the same bytes.
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
from drl_serving.http.problems import PROTOCOL, Problem, as_problem, with_error
from drl_serving.observability import tracing
from drl_serving.observability.metrics import Metrics
from drl_serving.observability.otlp_exporter import SpanExporter
from drl_serving.observability.tracing import Trace

OPEN = ("/health/", "/metrics", "/v2/health/", "/schema", "/console/login", "/console/static/")
"""Paths that anybody may ask for."""
_SELF_TIMED = ("/v1/telemetry", "/v1/decisions/live")
"""Streams: they bound the time of each part by themselves."""
_DECISIONS = "/v1/decisions"
_CONSOLE = "/console"
HELD_S = 0.25
"""How long the refusal is held back of what would wait too long."""
_SAFE = ("GET", "HEAD", "OPTIONS")

Pairs = tuple[tuple[bytes, bytes], ...]
RawHeaders = Iterable[tuple[bytes, bytes]]


class GatewayHeaders(NamedTuple):
    """What is put on every answer that does not have it."""

    data: Pairs
    page: Pairs
    """On HTML."""


class FastPathRoute(Protocol):
    """A POST of one path that is answered without the framework."""

    def takes(self, media: bytes, body: bytes) -> bool:
        """Whether it answers a body of this content type; otherwise the framework does."""

    async def __call__(
        self, body: bytes, headers: RawHeaders, principal: Principal, trace: Trace
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """The answer's own headers, and its body; raises what `as_problem` knows."""


ConsoleAuthenticator = Callable[[RawHeaders], Principal]
"""A request's headers -> who looks at the console; raises a `Problem` that leads to the sign-in."""


class Gateway:
    """An ASGI application around the service's own.

    Args:
        app: the framework's application.
        access: authenticates and limits.
        metrics: counts.
        spans: exports the traces that are sampled; None exports none.
        lean: the routes that are answered here, by path.
        headers: of every answer.
        visitor: says who asks for a page of the console; None: as for everything else.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: AccessControl,
        metrics: Metrics,
        spans: SpanExporter | None,
        lean: Mapping[str, FastPathRoute],
        headers: GatewayHeaders,
        visitor: ConsoleAuthenticator | None = None,
    ) -> None:
        self.app = app
        self._access = access
        self._metrics = metrics
        self._spans = spans
        self._lean = lean
        self._headers = headers
        self._visitor = visitor
        self.max_queue_s = 0.025
        self.timeout_s = 30.0
        self.max_body = 0
        self.trace_share = 0.0
        self._queue = _Queue(metrics)
        self._running: dict[asyncio.Task[None], float] = {}
        self._overdue: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            await self._request(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    @property
    def in_flight(self) -> int:
        """Requests at work, streams aside."""
        return len(self._running)

    async def cancel_overdue_requests(self) -> None:
        """Look for requests that take too long, once a second until cancelled."""
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
        answer = _ResponseSender(send, self._headers, trace)
        closed = not scope["path"].startswith(OPEN)
        if closed and self._queue.waited(began) > self.max_queue_s:
            await self._shed(scope, answer)
            return
        scope["state"]["trace"], scope["state"]["began"] = trace, began
        try:
            if closed:
                self._let_in(scope)
            if scope["path"] in _SELF_TIMED:
                await self.app(scope, receive, answer)
            else:
                await self._timed(scope, receive, answer, began)
        except Problem as problem:
            await self._answer_problem(scope, answer, problem)
        if self._spans is not None and trace.sampled:
            route = scope.get("path_template") or self._label(scope["path"])
            took = time.perf_counter() - began
            self._spans.request(trace, scope["method"], route, answer.status, took)

    async def _timed(
        self, scope: HTTPScope, receive: Receive, answer: "_ResponseSender", began: float
    ) -> None:
        """Answer within the time limit.

        Raises:
            Problem: 408 where it took too long.
        """
        task: Any = asyncio.current_task()
        self._running[task] = began
        try:
            route = self._lean.get(scope["path"])
            if route is not None and scope["method"] == "POST":
                await self._answer_lean(route, scope, receive, answer, began)
            else:
                await self.app(scope, receive, answer)
        except asyncio.CancelledError:
            if task not in self._overdue or answer.status:
                raise  # the service ends; or it is too late to say anything, and uvicorn hangs up
            task.uncancel()
            raise _too_slow(self.timeout_s) from None
        finally:
            del self._running[task]
            self._overdue.discard(task)

    async def _shed(self, scope: HTTPScope, answer: "_ResponseSender") -> None:
        """Refuse, after a while: refusing costs half a decision, and some callers ask at once."""
        self._metrics.shed.inc()
        self._metrics.answered(scope["method"], self._label(scope["path"]), 503)
        await asyncio.sleep(HELD_S)
        await answer.send(503, list(_SHED_HEADERS), _SHED_BODY)

    def _let_in(self, scope: HTTPScope) -> None:
        """Say who asks.

        Raises:
            Problem: 401 or 429 where it may not ask now.
        """
        if self._visitor is not None and scope["path"].startswith(_CONSOLE):
            principal = self._visitor(scope["headers"])  # by its cookie, which opens nothing else
        else:
            client = scope["client"]
            principal = self._access.authenticate(scope["headers"], client[0] if client else None)
        if principal.kind == "anonymous" and scope["method"] not in _SAFE:
            _require_no_other_site(scope)
        self._access.admit(principal)
        scope["state"]["principal"] = principal

    async def _answer_lean(
        self,
        route: FastPathRoute,
        scope: HTTPScope,
        receive: Receive,
        answer: "_ResponseSender",
        began: float,
    ) -> None:
        """Answer what the route takes; hand anything else on, with its body still to be read."""
        messages, body = await self._read(receive)
        media = _media(scope)
        if body is None or media is None or not route.takes(media, body):
            await self.app(scope, _replay(messages, receive), answer)
            return
        state, path = scope["state"], scope["path"]
        try:
            headers, content = await route(
                body, scope["headers"], state["principal"], state["trace"]
            )
        except Exception as error:
            await self._answer_problem(scope, answer, as_problem(error))
            return
        took = time.perf_counter() - began
        if path == _DECISIONS:
            self._metrics.decision_seconds.observe(took)
        self._metrics.answered("POST", path, 200, took)
        await answer.send(200, headers, content)
        self._queue.worked_until(began + took)

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

    async def _answer_problem(
        self, scope: HTTPScope, answer: "_ResponseSender", problem: Problem
    ) -> None:
        self._metrics.answered(scope["method"], self._label(scope["path"]), problem.status)
        if scope["path"].startswith(PROTOCOL):
            problem = with_error(problem)
        await answer.send(problem.status, problem.raw_headers(), problem.body())

    def _label(self, path: str) -> str:
        """The route, for what is answered before routing: a lean one, or all others."""
        return path if path in self._lean else "front"


class _Queue:
    """How long requests waited, as far as it can be told.

    What comes in while the event loop is at work waits in its socket, unseen, until the next turn.
    Where a turn follows the one before at once, and as many are in it, they came all along that
    one; so each request ahead in this turn stands for its share of the turn before.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._in_turn = False
        self._began = self._worked_until = 0.0
        self._size, self._before, self._share = 0, 0, 0.0

    def waited(self, now: float) -> float:
        """Seconds that a request waited which is begun now."""
        if not self._in_turn:
            self._in_turn = True
            asyncio.get_running_loop().call_soon(self._end_turn)
            worked, idle = self._worked_until - self._began, now - self._worked_until
            self._share = (now - self._began) / self._size if idle < worked else 0.0
            self._began, self._before, self._size = now, self._size, 0
        ahead = min(self._size, self._before)
        self._size += 1
        self._metrics.queue_seconds.observe(now - self._began)
        return now - self._began + ahead * self._share

    def worked_until(self, now: float) -> None:
        """A request was answered."""
        self._worked_until = now

    def _end_turn(self) -> None:
        self._in_turn = False


class _ResponseSender:
    """A request's `send`, with this service's headers on the answer."""

    def __init__(self, send: Send, headers: GatewayHeaders, trace: Trace) -> None:
        self._send = send
        self._headers = headers
        self._trace = trace
        self.status = 0
        """0 until the answer has begun."""

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
        """Answer with data, whole."""
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


_OVERLOADED = Problem(
    503,
    "overloaded",
    "more requests came in than can be answered in time",
    "Wait for the seconds of Retry-After, then send the request again.",
    retry_after_s=1,
)
_SHED_HEADERS, _SHED_BODY = _OVERLOADED.raw_headers(), _OVERLOADED.body()


def _too_slow(seconds: float) -> Problem:
    return Problem(
        408,
        "request-timeout",
        f"the request was not received and answered within {seconds:g} s",
        "Send it again in one go, smaller if need be.",
    )
