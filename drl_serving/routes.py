"""The Litestar application: every controller, its dependencies and exception handler."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide

from drl_serving.audit.controller import AuditController
from drl_serving.console.api_page import ApiPage
from drl_serving.console.controller import ConsoleController
from drl_serving.console.decisions import DecisionPages
from drl_serving.console.models import ModelPages
from drl_serving.console.patterns import PatternPages
from drl_serving.decisions.controller import DecisionController
from drl_serving.decisions.log_controller import DecisionLogController
from drl_serving.gateway.openapi_errors import OpenApiJson
from drl_serving.health.controller import HealthController
from drl_serving.http import openapi
from drl_serving.http.problems import answer
from drl_serving.http.request_body import BoundedRequest
from drl_serving.models.controller import ModelController
from drl_serving.open_inference.controller import InferenceController
from drl_serving.patterns.controller import PatternController
from drl_serving.telemetry.controller import TelemetryController

CONTROLLERS = (
    DecisionController,
    DecisionLogController,
    TelemetryController,
    ModelController,
    InferenceController,
    PatternController,
    AuditController,
    HealthController,
    ConsoleController,
    DecisionPages,
    ModelPages,
    PatternPages,
)


def application(
    parts: Mapping[str, Any], lifespan: Callable[[Litestar], AbstractAsyncContextManager[None]]
) -> Litestar:
    """The application.

    Args:
        parts: what handlers may ask for, by the name of their argument.
        lifespan: entered before the first request.
    """
    return Litestar(
        route_handlers=list(CONTROLLERS),
        dependencies={name: _provide(part) for name, part in parts.items()},
        state=State({name: parts[name] for name in ("access", "audit", "limits")}),
        exception_handlers={Exception: answer},
        before_send=[parts["metrics"].before_send],
        lifespan=[lifespan],
        openapi_config=openapi.config(ApiPage(), OpenApiJson()),
        request_class=BoundedRequest,
        request_max_body_size=None,  # `BoundedRequest` has a limit that may change
        logging_config=None,
    )


def _provide(part: object) -> Provide:
    return Provide(lambda: part, use_cache=True, sync_to_thread=False)
