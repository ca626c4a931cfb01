"""Litestar guards for scopes: `guards=[requires("patterns")]` on a controller or a handler."""

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from drl_serving.access.principal import Principal, Scope
from drl_serving.access.service import AccessControl, forbidden


def requires(scope: Scope) -> Guard:
    """A guard for callers with a scope.

    The principal is `scope["state"]["principal"]`, where the gateway has put it; a request that
    did not pass the gateway has none and is refused. `app.state.access`, where there is
    one, decides and counts.

    Raises:
        Problem: 403, naming the scope.
    """

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        principal: Principal | None = connection.scope["state"].get("principal")
        if principal is None:
            raise forbidden(scope)
        access: AccessControl | None = connection.app.state.get("access")
        if access is not None:
            access.require(principal, scope, connection.client and connection.client.host)
        elif scope not in principal.scopes:
            raise forbidden(scope)

    return guard
