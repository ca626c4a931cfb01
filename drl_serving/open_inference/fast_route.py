"""`infer` on the fast path: a request's bytes in, the answer's bytes out, without the framework."""

import time

from drl_serving.access.principal import Principal
from drl_serving.access.service import AccessControl
from drl_serving.gateway.gateway import RawHeaders
from drl_serving.http.request_body import Limits
from drl_serving.observability.tracing import Trace
from drl_serving.open_inference import protocol
from drl_serving.open_inference.service import NAME, Inference

PATH = f"/v2/models/{NAME}/infer"
LENGTH = "Inference-Header-Content-Length"
_LENGTH = LENGTH.lower().encode()
_JSON, _OCTETS = b"application/json", b"application/octet-stream"


class Inferrer:
    """Scores a body's tensors."""

    def __init__(self, inference: Inference, limits: Limits) -> None:
        self._inference = inference
        self._limits = limits

    async def infer(
        self, body: bytes, model: str, version: str, encoding: str, json_bytes: str | None
    ) -> tuple[bytes, int | None]:
        """Answer a body.

        Args:
            body: JSON, then binary data.
            model: asked for.
            version: asked for; empty for the released one.
            encoding: of the body.
            json_bytes: the header `Inference-Header-Content-Length`, where it is there.

        Returns:
            The answer's body and, where it has binary data, the length of its JSON part.

        Raises:
            Problem: 400, 404, 413, 415, 500 or 503.
        """
        began = time.perf_counter_ns()
        try:
            served = await self._inference.model(model, version)
            plain = protocol.inflate(body, encoding, self._limits.max_body_bytes)
            asked = protocol.parse(plain, json_bytes)
            scores = await self._inference.infer(served, asked.inputs, began)
        except Exception:
            self._inference.statistics.failed(began)
            raise
        return protocol.encode(asked, served, scores)


class FastPathInfer:
    """Answers `POST` of `PATH`, for the released version."""

    def __init__(self, access: AccessControl, inferrer: Inferrer) -> None:
        self._access = access
        self._inferrer = inferrer

    def takes(self, media: bytes, body: bytes) -> bool:
        """JSON, and JSON with binary data behind it."""
        return media in (_JSON, _OCTETS, b"")

    async def __call__(
        self, body: bytes, headers: RawHeaders, principal: Principal, trace: Trace
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Score.

        Raises:
            Problem: as `Inferrer.infer`; 403.
        """
        self._access.require(principal, "decide")
        length = dict(headers).get(_LENGTH)
        json_bytes = None if length is None else length.decode("latin-1")
        content, length_of_json = await self._inferrer.infer(body, NAME, "", "", json_bytes)
        if length_of_json is None:
            return [(b"content-type", _JSON)], content
        about = (_LENGTH, str(length_of_json).encode())
        return [about, (b"content-type", _OCTETS)], content
