"""`/v2`: the Open Inference Protocol V2 over HTTP, for clients of Triton, KServe and MLServer.

Errors are problems like everywhere, with the protocol's `error` member beside.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.datastructures import ResponseHeader
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import FromPath

from drl_serving.access.guards import requires
from drl_serving.http import problems
from drl_serving.open_inference import protocol
from drl_serving.open_inference.fast_route import LENGTH, Inferrer
from drl_serving.open_inference.service import Inference, server_metadata

_JSON, _OCTETS = "application/json", "application/octet-stream"
_DECIDE, _PUBLISH = [requires("decide")], [requires("publish")]
Requested = Request[Any, Any, Any]


class InferenceError(msgspec.Struct, frozen=True):
    """A problem with the protocol's own member."""

    error: str


def _errors(*statuses: int) -> dict[int, ResponseSpec]:
    return {
        status: ResponseSpec(
            InferenceError,
            generate_examples=False,
            description="Refused; says why.",
            media_type=problems.PROBLEM_JSON,
        )
        for status in (401, 403, 429, *statuses)
    }


@dataclass
class _InferOperation(Operation):
    """An operation whose body is JSON, or JSON with binary tensors behind it."""

    def __post_init__(self) -> None:
        tensor = Schema(
            type=OpenAPIType.OBJECT,
            required=["name", "shape", "datatype"],
            properties={
                "name": Schema(type=OpenAPIType.STRING),
                "shape": Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.INTEGER)),
                "datatype": Schema(type=OpenAPIType.STRING),
                "data": Schema(type=OpenAPIType.ARRAY),
            },
        )
        body = Schema(
            type=OpenAPIType.OBJECT,
            required=["inputs"],
            properties={"inputs": Schema(type=OpenAPIType.ARRAY, items=tensor)},
        )
        binary = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, format="binary"))  # type: ignore[arg-type]
        self.request_body = RequestBody(
            content={_JSON: OpenAPIMediaType(schema=body), _OCTETS: binary}, required=True
        )


def answer(request: Requested, error: Exception) -> Response[bytes]:
    """The exception handler of these routes."""
    problem = problems.with_error(problems.as_problem(error))
    if problem.status >= 500 and not isinstance(error, problems.Problem):
        return problems.answer(request, error)
    return problem.response()


class InferenceController(Controller):
    """Raw rows in, Q-values, features and the next carry out."""

    path = "/v2"
    tags = ("inference",)
    exception_handlers = {Exception: answer}  # noqa: RUF012 - the framework's way

    @get(
        operation_id="v2_server",
        summary="Name, version and extensions of this server",
        guards=_DECIDE,
    )
    async def server(self) -> dict[str, Any]:
        return server_metadata()

    @get("/health/live", operation_id="v2_live", summary="The process answers")
    async def live(self) -> dict[str, bool]:
        return {"live": True}

    @get("/health/ready", operation_id="v2_ready", summary="The released model is loaded")
    async def ready(self, inference: NamedDependency[Inference]) -> Response[dict[str, bool]]:
        return _readiness(inference.server_ready)

    @get(
        ["/models/{model:str}/ready", "/models/{model:str}/versions/{version:str}/ready"],
        operation_id=lambda handler, method, path: _id("v2_model_ready", path),
        summary="A model can be asked",
        guards=_DECIDE,
        responses=_errors(400, 404),
    )
    async def model_ready(
        self,
        inference: NamedDependency[Inference],
        model: FromPath[str],
        version: FromPath[str] = "",
    ) -> Response[dict[str, bool]]:
        return _readiness(await inference.ready(model, version))

    @get(
        ["/models/{model:str}", "/models/{model:str}/versions/{version:str}"],
        operation_id=lambda handler, method, path: _id("v2_model", path),
        summary="Versions, inputs and outputs",
        guards=_DECIDE,
        responses=_errors(400, 404, 503),
    )
    async def model(
        self,
        inference: NamedDependency[Inference],
        model: FromPath[str],
        version: FromPath[str] = "",
    ) -> dict[str, Any]:
        return await inference.metadata(model, version)

    @get(
        ["/models/{model:str}/config", "/models/{model:str}/versions/{version:str}/config"],
        operation_id=lambda handler, method, path: _id("v2_model_config", path),
        summary="The model's configuration",
        guards=_DECIDE,
        responses=_errors(400, 404, 503),
    )
    async def config(
        self,
        inference: NamedDependency[Inference],
        model: FromPath[str],
        version: FromPath[str] = "",
    ) -> dict[str, Any]:
        return await inference.config(model, version)

    @get(
        [
            "/models/stats",
            "/models/{model:str}/stats",
            "/models/{model:str}/versions/{version:str}/stats",
        ],
        operation_id=lambda handler, method, path: _id("v2_model_stats", path),
        summary="Counts and durations over all workers",
        guards=_DECIDE,
        responses=_errors(400, 404, 503),
    )
    async def stats(
        self,
        inference: NamedDependency[Inference],
        model: FromPath[str] = "",
        version: FromPath[str] = "",
    ) -> dict[str, Any]:
        return await inference.stats(model, version)

    @post(
        ["/models/{model:str}/infer", "/models/{model:str}/versions/{version:str}/infer"],
        operation_id=lambda handler, method, path: _id("v2_infer", path),
        summary="Score raw rows",
        status_code=200,
        guards=_DECIDE,
        operation_class=_InferOperation,
        response_headers=[
            ResponseHeader(name=LENGTH, description="Of the JSON part.", documentation_only=True)
        ],
        responses=_errors(400, 404, 413, 415, 500, 503),
    )
    async def infer(
        self,
        request: Requested,
        inferrer: NamedDependency[Inferrer],
        model: FromPath[str],
        version: FromPath[str] = "",
    ) -> Response[bytes]:
        headers = request.headers
        encoding = headers.get("content-encoding", "").strip().lower()
        content, length = await inferrer.infer(
            await request.body(), model, version, encoding, headers.get(LENGTH)
        )
        if length is None:
            return Response(content, media_type=_JSON)
        return Response(content, media_type=_OCTETS, headers={LENGTH: str(length)})

    @post(
        "/repository/index",
        operation_id="v2_repository_index",
        summary="The models of the repository",
        status_code=200,
        guards=_DECIDE,
        responses=_errors(400),
    )
    async def index(
        self, request: Requested, inference: NamedDependency[Inference]
    ) -> list[dict[str, str]]:
        ready = (await _object(request)).get("ready") is True
        return [about for about in inference.index() if not ready or about["state"] == "READY"]

    @post(
        "/repository/models/{model:str}/load",
        operation_id="v2_load",
        summary="Make the model available in every worker, and load a new release",
        status_code=200,
        guards=_PUBLISH,
        responses=_errors(400, 404),
    )
    async def load(
        self, request: Requested, inference: NamedDependency[Inference], model: FromPath[str]
    ) -> dict[str, Any]:
        caller = request.scope["state"]["principal"]
        await inference.load(model, caller, (await _object(request)).get("parameters"))
        return {}

    @post(
        "/repository/models/{model:str}/unload",
        operation_id="v2_unload",
        summary="Make the model unavailable over V2 in every worker; decisions go on",
        status_code=200,
        guards=_PUBLISH,
        responses=_errors(400, 404),
    )
    async def unload(
        self, request: Requested, inference: NamedDependency[Inference], model: FromPath[str]
    ) -> dict[str, Any]:
        await _object(request)
        await inference.unload(model, request.scope["state"]["principal"])
        return {}


def _id(name: str, path: Any) -> str:
    """An operation's id; the paths of one handler differ by their parameters."""
    parameters = {part.name for part in path if not isinstance(part, str)}
    return name + ("_version" if "version" in parameters else "" if parameters else "_all")


def _readiness(ready: bool) -> Response[dict[str, bool]]:
    return Response({"ready": ready}, status_code=200 if ready else 503)


async def _object(request: Requested) -> dict[str, Any]:
    """The body, a JSON object or nothing."""
    body = await request.body()
    if not body.strip():
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise protocol.refuse(f"the body is not a JSON object: {cause}") from None
