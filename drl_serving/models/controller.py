"""`GET /v1/models` and `GET /v1/models/current`."""

import asyncio
from typing import Annotated, Any

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import Parameter

from drl_serving import openapi
from drl_serving.model import ModelHolder
from drl_serving.models import service
from drl_serving.models.schemas import ReleaseSummary


class ModelController(Controller):
    """Which model decides, and which ones came before it."""

    path = "/v1/models"
    tags = ("models",)

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
