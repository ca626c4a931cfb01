"""Exception handler: every exception leaves as `application/problem+json` (RFC 9457).

`Problem` is raised by the service's own code; telemetry, landing and framework errors are mapped
here. Each answer says what was wrong, in which field where there is one, and what to do next.
"""

from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException

from drl_core.telemetry.event import TelemetryError
from drl_core.telemetry.landing import LandingError
from drl_serving.http.options import allowed

PROBLEM_JSON = "application/problem+json"
PROTOCOL = "/v2"
"""Paths of the Open Inference Protocol, whose clients look for the member `error`."""
_log = structlog.get_logger("drl_serving.http.problems")

_NEXT = {
    400: "Fix the named field and send the request again; /schema describes it.",
    404: "Look up the path in /schema.",
    405: "Look up the path's methods in /schema.",
    413: "Send less in one request, in several requests.",
    415: "Set the Content-Type header to one that this path accepts; see /schema.",
}
_REPORT = "Report this with the time of the request; the service's log has the cause."


class Problem(Exception):  # noqa: N818 - the name that RFC 9457 gives it
    """An answer that is not a success.

    Args:
        status: of the HTTP answer.
        name: stable, kebab-case; `urn:drl:problem:<name>` is the problem's type.
        detail: what was wrong with this request.
        next_step: what the caller should do now.
        field: the field that was wrong.
        retry_after_s: seconds after which the same request may succeed.
        extra: further members of the answer.
        headers: further headers of the answer, such as WWW-Authenticate.
    """

    def __init__(
        self,
        status: int,
        name: str,
        detail: str,
        next_step: str,
        *,
        field: str | None = None,
        retry_after_s: int | None = None,
        extra: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.name = name
        self.detail = detail
        self.next_step = next_step
        self.field = field
        self.retry_after_s = retry_after_s
        self.extra = extra or {}
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)

    def body(self) -> bytes:
        """The problem as JSON."""
        return msgspec.json.encode(
            {
                "type": f"urn:drl:problem:{self.name}",
                "title": self.name.replace("-", " ").capitalize(),
                "status": self.status,
                "detail": self.detail,
                "field": self.field,
                "next": self.next_step,
                **self.extra,
            }
        )

    def response(self) -> Response[bytes]:
        """The problem as an HTTP answer of the framework."""
        return Response(
            self.body(),
            status_code=self.status,
            media_type=PROBLEM_JSON,
            headers=self.headers,
        )

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The same answer's headers, as ASGI has them."""
        named = [(name.lower().encode(), text.encode()) for name, text in self.headers.items()]
        return [*named, (b"content-type", PROBLEM_JSON.encode())]


def as_problem(error: Exception) -> Problem:
    """The problem that an exception is answered with."""
    match error:
        case Problem():
            return error
        case TelemetryError():
            where = {} if error.record is None else {"record": error.record}
            return Problem(
                400, "invalid-event", str(error), _NEXT[400], field=error.field, extra=where
            )
        case LandingError():
            return Problem(
                503,
                "landing-failed",
                f"telemetry could not be stored durably, nothing was kept: {error.strerror}",
                "Keep the events and send them again; free space in the landing zone.",
                retry_after_s=5,
            )
        case HTTPException() if error.status_code < 500:
            name = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
            field, message = _parameter(error)
            next_step = _NEXT.get(error.status_code, _NEXT[400])
            detail = f"{field}: {message}" if field else error.detail
            return Problem(error.status_code, name, detail, next_step, field=field)
        case _:
            return Problem(500, "internal-error", "the service failed on this request", _REPORT)


def bad_request(field: str, why: str) -> Problem:
    """400 that names the wrong field or parameter."""
    return Problem(400, "bad-request", f"{field}: {why}", _NEXT[400], field=field)


def with_error(problem: Problem) -> Problem:
    """The problem with the protocol's own member beside."""
    problem.extra = {**problem.extra, "error": problem.detail}
    return problem


def _parameter(error: HTTPException) -> tuple[str | None, str]:
    """The parameter that the framework found wrong, where it names one, and why."""
    match error.extra:
        case [{"key": str(key), "message": str(message)}, *_]:
            return key, message
        case _:
            return None, ""


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The application's exception handler."""
    problem = as_problem(error)
    if isinstance(error, MethodNotAllowedException):
        problem.headers["Allow"] = allowed(request.app, request.url.path)
    if request.url.path.startswith(PROTOCOL):
        problem = with_error(problem)
    if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("request failed", path=request.url.path, exc_info=error)
    return problem.response()
