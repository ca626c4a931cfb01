"""OPTIONS middleware: the methods of a path, also for the header Allow of 405 (RFC 9110).

The framework's own answer to OPTIONS names only the methods of the handler that came first.
"""

import contextlib
from typing import Any

from litestar import Litestar
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.types import Receive, Scope, Send

_METHODS = ("DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT")


class OptionsMiddleware:
    """The application, and an answer to OPTIONS before it.

    Args:
        app: the framework's application.
    """

    def __init__(self, app: Litestar) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and scope["method"] == "OPTIONS":
            methods = allowed(self.app, scope["path"])
            if methods:
                headers = [(b"allow", methods.encode())]
                await send({"type": "http.response.start", "status": 204, "headers": headers})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
        await self.app(scope, receive, send)


def allowed(app: Litestar, path: str) -> str:
    """The methods of a path, with commas between them; empty where there is no such path."""
    router: Any = app.asgi_router
    found = []
    for method in _METHODS:
        with contextlib.suppress(HTTPException):
            router.handle_routing(path, method)
            found.append(method)
    return ", ".join(found)
