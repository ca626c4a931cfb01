"""gRPC interceptor: bytes that protobuf cannot parse reach the servicer as `MalformedMessage`.

Left to the library, they end a call with UNKNOWN, as if the service had failed.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError


class MalformedMessage:
    """Stands for a message; `reason` says what is wrong with its bytes."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class TolerantDeserialization(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Makes every call's deserialiser give `MalformedMessage` where it would fail."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        """The call's handler, with such a deserialiser."""
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler
        return handler._replace(request_deserializer=_tolerant(handler.request_deserializer))


def _tolerant(deserialise: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(content: bytes) -> Any:
        try:
            return deserialise(content)
        except DecodeError as error:
            return MalformedMessage(str(error))

    return read
