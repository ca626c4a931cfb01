"""Audit hook for Litestar routes: `before_request = Audited("patterns.read")`."""

from typing import Any

from litestar import Request

from drl_serving.audit.log import Audit


class Audited:
    """A `before_request` hook that records who requests what, after the guards have passed.

    It writes to `app.state.audit`; the target is the path with its query.

    Args:
        action: as in `AuditRecord`.
    """

    def __init__(self, action: str) -> None:
        self._action = action

    async def __call__(self, request: Request[Any, Any, Any]) -> None:
        """Record one request."""
        audit: Audit = request.app.state.audit
        query = f"?{request.url.query}" if request.url.query else ""
        audit.record(
            self._action,
            actor=request.scope["state"]["principal"].id,
            target=f"{request.url.path}{query}"[:500],
            client=request.client.host if request.client else None,
        )
