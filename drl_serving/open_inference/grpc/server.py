"""The gRPC server of one worker: started beside the HTTP one, on a port that all workers share.

Settings and the worker's parts come in; a running `grpc.aio` server comes out. TLS uses the files
of the HTTP server.
"""

from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

from drl_core.settings import Settings, SettingsError
from drl_serving.access.tls import uvicorn_options
from drl_serving.observability.metrics import Metrics
from drl_serving.open_inference.grpc.malformed_messages import TolerantDeserialization
from drl_serving.open_inference.grpc.protos import open_inference_pb2_grpc as stubs
from drl_serving.open_inference.grpc.servicer import Authenticator, HealthService, Servicer
from drl_serving.open_inference.service import Inference

MAX_CALLS = 256
"""In-flight limit of one worker; calls above it get RESOURCE_EXHAUSTED."""
GRACE_S = 5.0


async def start(
    settings: Settings, inference: Inference, access: Authenticator, metrics: Metrics
) -> Any:
    """Listen on `settings.serving.host` and `grpc_port`.

    Returns:
        The running server.

    Raises:
        SettingsError: the port cannot be had, or the TLS files cannot be used.
    """
    serving = settings.serving
    server = grpc.aio.server(
        interceptors=[TolerantDeserialization()],
        maximum_concurrent_rpcs=MAX_CALLS,
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", serving.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 16 << 10),
        ],
    )
    servicer = Servicer(inference, access, metrics, serving.request_timeout_s)
    stubs.add_GRPCInferenceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(inference), server)
    host = f"[{serving.host}]" if ":" in serving.host else serving.host
    address = f"{host}:{serving.grpc_port}"
    try:
        tls = uvicorn_options(settings)
        if tls:
            pair = Path(tls["ssl_keyfile"]).read_bytes(), Path(tls["ssl_certfile"]).read_bytes()
            server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            server.add_insecure_port(address)
    except RuntimeError as cause:
        raise SettingsError(f"serving.grpc_port: cannot listen on {address}: {cause}") from None
    await server.start()
    return server


async def stop(server: Any) -> None:
    """Let the calls that are under way end, then close."""
    await server.stop(GRACE_S)
