"""OTLP exporter (optional): sampled requests become spans, sent in batches over HTTP by a thread.

Nothing here is imported or run unless `observability.otlp_endpoint` is set. The SDK is used for
what it does well, batching and sending; the spans are built directly from traces that are already
there, since its own instrumentation costs more than a decision.
"""

import os
import time
from typing import TYPE_CHECKING, Any

from drl_core.settings import Observability, SettingsError
from drl_serving.observability.tracing import Trace

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

SERVICE = "drl-serving"
SCOPE = "drl_serving.observability.otlp_exporter"


class SpanExporter:
    """Sends a span for each sampled request; to be closed, so that the last are sent.

    Args:
        settings: with `otlp_endpoint`.

    Raises:
        SettingsError: the endpoint is not set, or the extra `otel` is not installed.
    """

    def __init__(self, settings: Observability) -> None:
        if settings.otlp_endpoint is None:
            raise SettingsError("observability.otlp_endpoint is not set")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as cause:
            raise SettingsError(
                "observability.otlp_endpoint is set, but OpenTelemetry is not installed: "
                f"pip install 'drl-sandbox-policy[otel]' ({cause.name})"
            ) from None
        endpoint = settings.otlp_endpoint.rstrip("/") + "/v1/traces"
        self._resource = Resource({"service.name": SERVICE, "process.pid": os.getpid()})
        self._processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=10))

    def request(
        self, trace: Trace, method: str, route: str, status: int, seconds: float, **more: Any
    ) -> None:
        """Export one answered request, if its trace is sampled; queues and returns.

        Args:
            trace: of the request.
            method: GET, POST, ...
            route: its template.
            status: of the answer.
            seconds: how long it took, until now.
            more: further attributes; names with `__` for a dot.
        """
        if not trace.sampled:
            return
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanKind, Status, StatusCode

        ended = time.time_ns()
        code = StatusCode.ERROR if status >= 500 else StatusCode.UNSET
        parent = None if trace.parent_id is None else _context(trace, trace.parent_id, remote=True)
        attributes = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            **{name.replace("__", "."): value for name, value in more.items()},
        }
        self._processor.on_end(
            ReadableSpan(
                name=f"{method} {route}",
                context=_context(trace, trace.span_id, remote=False),
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                kind=SpanKind.SERVER,
                status=Status(code),
                start_time=ended - int(seconds * 1e9),
                end_time=ended,
                instrumentation_scope=InstrumentationScope(SCOPE),
            )
        )

    def close(self) -> None:
        """Send what waits."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def _context(trace: Trace, span_id: str, *, remote: bool) -> "SpanContext":
    from opentelemetry.trace import SpanContext, TraceFlags, TraceState

    state = TraceState.from_header([trace.state.decode("ascii")]) if trace.state else None
    return SpanContext(
        int(trace.trace_id, 16), int(span_id, 16), remote, TraceFlags(TraceFlags.SAMPLED), state
    )
