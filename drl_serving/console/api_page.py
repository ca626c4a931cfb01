"""The OpenAPI document as one plain page at /schema, without scripts or other sites."""

from typing import Any

from litestar import Request
from litestar.openapi.plugins import OpenAPIRenderPlugin

from drl_serving.console.pages import Pages

_METHODS = ("get", "post", "put", "patch", "delete")


class ApiPage(OpenAPIRenderPlugin):
    """Renders the OpenAPI document; once, since it stays as it is while the service runs."""

    def __init__(self) -> None:
        super().__init__(path="/")
        self._rendered: bytes | None = None

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The page, in UTF-8."""
        if self._rendered is None:
            operations = [
                (method.upper(), path, item[method])
                for path, item in openapi_schema["paths"].items()
                for method in _METHODS
                if method in item
            ]
            self._rendered = (
                Pages()
                .render(
                    "schema.html", schema=openapi_schema, operations=operations, who=None, path=""
                )
                .encode()
            )
        return self._rendered
