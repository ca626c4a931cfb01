"""gRPC servicer of `inference.GRPCInferenceService`: messages in and out over `Inference`.

Every call is authenticated by its `authorization` metadata and held to the scope that its HTTP twin
needs; whatever goes wrong leaves as a status code with the problem's words.
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

import grpc
import structlog
from google.protobuf.json_format import ParseDict
from grpc_health.v1 import health_pb2, health_pb2_grpc

from drl_core.policy.features import Array
from drl_core.release.manifest import OUTPUTS
from drl_serving.access.principal import Principal
from drl_serving.http.problems import Problem, as_problem
from drl_serving.observability.metrics import Metrics
from drl_serving.open_inference import protocol
from drl_serving.open_inference.grpc.malformed_messages import MalformedMessage
from drl_serving.open_inference.grpc.protos import open_inference_pb2 as messages
from drl_serving.open_inference.grpc.protos import open_inference_pb2_grpc as stubs
from drl_serving.open_inference.service import DATATYPES, NAME, Inference, server_metadata

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
_log = structlog.stdlib.get_logger(__name__)

Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


class Authenticator(Protocol):
    """What is asked of `drl_serving.access.service.AccessControl`."""

    def authenticate(self, headers: Any, client: str | None = None) -> Principal: ...
    def admit(self, principal: Principal) -> None: ...
    def require(self, principal: Principal, scope: str, client: str | None = None) -> None: ...


def _call(scope: str | None) -> Callable[[Method], Method]:
    """A method behind its scope (None: open to anybody), with problems as status codes."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        async def call(self: "Servicer", request: Any, context: Any) -> Any:
            code = grpc.StatusCode.OK
            try:
                self.admit(context, scope)
                _require_readable(request)
                async with asyncio.timeout(self.timeout_s):
                    return await method(self, request, context)
            except TimeoutError:
                code = grpc.StatusCode.DEADLINE_EXCEEDED
                await context.abort(code, f"not answered within {self.timeout_s:g} s")
            except Problem as problem:
                code = CODES.get(problem.status, grpc.StatusCode.INTERNAL)
                await context.abort(code, problem.detail, _retry(problem))
            except Exception as error:
                code = grpc.StatusCode.INTERNAL
                _log.error("call failed", method=method.__name__, exc_info=error)
                await context.abort(code, as_problem(error).detail)
            finally:
                self.count(method.__name__, code)

        return call  # type: ignore[return-value]

    return decorate


class Servicer(stubs.GRPCInferenceServiceServicer):
    """The calls of the protocol.

    Args:
        inference: does the work.
        access: authenticates and limits.
        metrics: counts the calls.
        timeout_s: longest time for one answer.
    """

    def __init__(
        self, inference: Inference, access: Authenticator, metrics: Metrics, timeout_s: float
    ) -> None:
        self._inference = inference
        self._access = access
        self._metrics = metrics
        self.timeout_s = timeout_s

    def admit(self, context: Any, scope: str | None) -> None:
        """Let a call go on.

        Raises:
            Problem: 401, 403 or 429.
        """
        if scope is None:
            return
        principal = self.principal(context)
        self._access.admit(principal)
        self._access.require(principal, scope, _address(context.peer()))

    def principal(self, context: Any) -> Principal:
        """Who calls, by the `authorization` metadata.

        Raises:
            Problem: 401.
        """
        headers = [
            (name.encode(), value if isinstance(value, bytes) else value.encode())
            for name, value in context.invocation_metadata()
        ]
        return self._access.authenticate(headers, _address(context.peer()))

    def count(self, method: str, code: Any) -> None:
        """Count a call as its HTTP twin is counted."""
        self._metrics.requests.labels("gRPC", method, code.name).inc(1)

    @_call(None)
    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The process answers."""
        return messages.ServerLiveResponse(live=True)

    @_call(None)
    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The released model is loaded."""
        return messages.ServerReadyResponse(ready=self._inference.server_ready)

    @_call("decide")
    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """A model can be asked."""
        ready = await self._inference.ready(request.name, request.version)
        return messages.ModelReadyResponse(ready=ready)

    @_call("decide")
    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Name, version and extensions."""
        return messages.ServerMetadataResponse(**server_metadata())

    @_call("decide")
    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Versions, inputs and outputs."""
        about = await self._inference.metadata(request.name, request.version)
        return ParseDict(about, messages.ModelMetadataResponse())

    @_call("decide")
    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The model's configuration."""
        about = await self._inference.config(request.name, request.version)
        return ParseDict({"config": about}, messages.ModelConfigResponse())

    @_call("decide")
    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Counts and durations over all workers."""
        about = await self._inference.stats(request.name, request.version)
        return ParseDict(about, messages.ModelStatisticsResponse(), ignore_unknown_fields=True)

    @_call("decide")
    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The models of the repository."""
        found = self._inference.index()
        models = [about for about in found if not request.ready or about["state"] == "READY"]
        return ParseDict({"models": models}, messages.RepositoryIndexResponse())

    @_call("publish")
    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Make the model available over the protocol, in every worker."""
        caller = self.principal(context)
        await self._inference.load(request.model_name, caller, dict(request.parameters))
        return messages.RepositoryModelLoadResponse()

    @_call("publish")
    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Make the model unavailable over the protocol, in every worker."""
        await self._inference.unload(request.model_name, self.principal(context))
        return messages.RepositoryModelUnloadResponse()

    @_call("decide")
    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Score raw rows."""
        return await self._infer(request)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Score raw rows, request by request; a refused one does not end the stream."""
        try:
            self.admit(context, "decide")
        except Problem as problem:
            await context.abort(CODES[problem.status], problem.detail, _retry(problem))
        async for request in requests:
            try:
                answer = messages.ModelStreamInferResponse(
                    infer_response=await self._infer(request)
                )
                code = grpc.StatusCode.OK
            except Problem as problem:
                answer = messages.ModelStreamInferResponse(error_message=problem.detail)
                answer.infer_response.id = getattr(request, "id", "")
                code = CODES.get(problem.status, grpc.StatusCode.INTERNAL)
            self.count("ModelStreamInfer", code)
            yield answer

    async def _infer(self, request: Any) -> Any:
        began = time.perf_counter_ns()
        try:
            _require_readable(request)
            model = await self._inference.model(request.model_name, request.model_version)
            asked = protocol.ParsedRequest(request.id, _inputs(request), _outputs(request))
            scores = await self._inference.infer(model, asked.inputs, began)
        except Exception:
            self._inference.statistics.failed(began)
            raise
        answer = messages.ModelInferResponse(
            model_name=NAME, model_version=model.manifest.model_version, id=asked.id
        )
        found = protocol.tables(scores)
        for name in asked.outputs:
            answer.outputs.add(name=name, datatype=DATATYPES[name], shape=found[name].shape)
            answer.raw_output_contents.append(found[name].tobytes())
        return answer


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The standard health service, for probes."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """SERVING with a model."""
        ready = self._inference.server_ready
        kinds = health_pb2.HealthCheckResponse
        return kinds(status=kinds.SERVING if ready else kinds.NOT_SERVING)


def _inputs(request: Any) -> dict[str, Array]:
    """The request's tables.

    Raises:
        Problem: 400, naming the tensor.
    """
    _require_supported(request)
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise protocol.refuse(f"{len(raw)} raw contents for {len(request.inputs)} inputs")
    inputs: dict[str, Array] = {}
    for number, tensor in enumerate(request.inputs):
        _require_supported(tensor)
        shape = list(tensor.shape)
        count = protocol.require_input(tensor.name, tensor.datatype, shape)
        if tensor.name in inputs:
            raise protocol.refuse(f"the input {tensor.name!r} is given twice", tensor.name)
        if raw and tensor.HasField("contents"):
            raise protocol.refuse(f"{tensor.name} has raw and typed contents", tensor.name)
        typed = tensor.contents.fp64_contents
        size = len(raw[number]) if raw else len(typed) * 8
        if size != count * 8:
            raise protocol.refuse(f"{tensor.name} has {size} bytes, {count * 8} expected")
        content = raw[number] if raw else protocol.doubles(typed)
        inputs[tensor.name] = protocol.table(content, shape)
    return protocol.complete(inputs)


def _outputs(request: Any) -> dict[str, bool]:
    for output in request.outputs:
        _require_supported(output)
    names = [protocol.require_output(output.name) for output in request.outputs]
    return dict.fromkeys(names or OUTPUTS, True)


def _require_readable(request: Any) -> None:
    if isinstance(request, MalformedMessage):
        raise protocol.refuse(f"the message cannot be read: {request.reason}")


def _require_supported(message: Any) -> None:
    given = {
        name: getattr(value, value.WhichOneof("parameter_choice") or "", None)
        for name, value in message.parameters.items()
    }
    protocol.require_supported(given)


def _address(peer: str) -> str | None:
    """The address of `ipv4:127.0.0.1:1234` or `ipv6:[::1]:1234`."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else None


def _retry(problem: Problem) -> tuple[tuple[str, str], ...]:
    after = problem.retry_after_s
    return () if after is None else (("retry-after", str(after)),)
