"""OpenAPI document, completed by the problems and security that the gateway adds to every route.

The framework describes each route as it is declared. The gateway in front of them refuses requests
too: missing credentials or scope, timeouts, load shedding. That is added here, when the document is
requested, together with the security scheme.
"""

from typing import Any

from litestar import Request
from litestar.openapi.plugins import JsonRenderPlugin

from drl_serving.gateway.gateway import OPEN
from drl_serving.http.openapi import REASONS
from drl_serving.http.problems import PROBLEM_JSON, PROTOCOL

_BEARER = "bearer"
_PROBLEM = {"$ref": "#/components/schemas/ProblemDetails"}
_PROTOCOL_PROBLEM = {"$ref": "#/components/schemas/InferenceError"}


class OpenApiJson(JsonRenderPlugin):
    """Renders the completed document."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        complete(openapi_schema, secured=request.app.state.access.required)
        return self.render_json(request, openapi_schema)


def complete(description: dict[str, Any], *, secured: bool) -> None:
    """Complete a document in place; idempotent.

    Args:
        description: OpenAPI 3.1, as JSON.
        secured: whether callers need credentials.
    """
    for path, methods in description["paths"].items():
        problem = _PROTOCOL_PROBLEM if path.startswith(PROTOCOL) else _PROBLEM
        for operation in methods.values():
            declared = operation["responses"]
            for status in _common(path, operation):
                known = declared.get(status, {}).get("content", {})
                if PROBLEM_JSON not in known and (status != "503" or not known):
                    declared[status] = {
                        "description": REASONS[int(status)],
                        "content": {PROBLEM_JSON: {"schema": problem}},
                    }
            if secured and not _is_open(path):
                operation["security"] = [{_BEARER: []}]
    if secured:
        schemes = description["components"].setdefault("securitySchemes", {})
        schemes[_BEARER] = {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key made by `drl keys`, or a JSON Web Token.",
        }


def _is_open(path: str) -> bool:
    return path.startswith(OPEN)


def _common(path: str, operation: dict[str, Any]) -> list[str]:
    """Statuses of the problems that an operation may answer with, whatever it does."""
    statuses = []
    if operation.get("parameters") or "requestBody" in operation:
        statuses.append("400")
    if "{" in path:
        statuses.append("404")
    if "requestBody" in operation:
        statuses.append("413")
    if not _is_open(path):
        statuses += ["401", "403", "408", "429", "503"]
    return statuses
