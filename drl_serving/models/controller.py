"""Routes of `/v1/models`: the served model, the releases before it, and the rollback."""

import asyncio
from typing import Annotated, Any

from litestar import Controller, Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, Parameter

from drl_serving.access.guards import requires
from drl_serving.audit.log import Audit
from drl_serving.http import openapi
from drl_serving.models import service
from drl_serving.models.holder import ModelHolder
from drl_serving.models.schemas import ModelDetails, ReleaseSummary, RolledBack


class ModelController(Controller):
    """Which model decides, and which ones came before it."""

    path = "/v1/models"
    tags = ("models",)
    guards = (requires("decide"),)

    @get(
        "/current",
        operation_id="get_current_model",
        summary="The served model's manifest, without its golden rows",
        responses=openapi.problems(503),
    )
    async def current(self, models: NamedDependency[ModelHolder]) -> dict[str, Any]:
        return service.metadata(service.require_model(models))

    @get(
        operation_id="list_models",
        summary="Releases in the model store, newest first",
    )
    async def releases(
        self,
        models: NamedDependency[ModelHolder],
        limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    ) -> list[ReleaseSummary]:
        return await asyncio.to_thread(service.releases, models, limit)

    @get(
        "/{version:str}",
        operation_id="get_model",
        summary="A release's manifest by its model version, and where it stands in this service",
        responses=openapi.problems(400, 404, 409),
    )
    async def one(
        self, models: NamedDependency[ModelHolder], version: FromPath[str]
    ) -> ModelDetails:
        return await service.details(models, version)

    @post(
        "/rollback",
        operation_id="roll_back_model",
        summary="Release the model before the current one again, under a new sequence number",
        description=(
            "Every worker serves it within its reload interval. It needs the signing key beside "
            "the service; where that is kept elsewhere, roll back there."
        ),
        status_code=200,
        guards=[requires("publish")],
        responses=openapi.problems(403, 409, 503),
    )
    async def roll_back(
        self,
        request: Request[Any, Any, Any],
        models: NamedDependency[ModelHolder],
        audit: NamedDependency[Audit],
    ) -> RolledBack:
        caller = request.scope["state"]["principal"].id
        released = await service.roll_back(models)
        target = f"{released.model_version} ({released.sequence})"
        client = request.client and request.client.host
        audit.record("model.rollback", actor=caller, target=target, client=client)
        return released
