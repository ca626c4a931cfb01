"""W3C trace context, and spans that reach a collector."""

import gzip
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_core.settings import Observability, SettingsError
from drl_serving.observability import tracing
from drl_serving.observability.otlp_exporter import SpanExporter

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def parent(value: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"traceparent", value.encode())]


def test_the_callers_trace_goes_on_with_a_span_of_ours() -> None:
    trace = tracing.begin([*parent(PARENT), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")])
    assert (trace.trace_id, trace.parent_id, trace.sampled) == (TRACE, SPAN, True)
    assert trace.span_id != SPAN
    assert trace.header == f"00-{TRACE}-{trace.span_id}-01".encode()
    assert trace.state == b"a=1,b=2"
    assert tracing.current.get() is trace


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-02", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-more", True),
    ],
)
def test_the_callers_sampling_decision_holds(value: str, sampled: bool) -> None:
    trace = tracing.begin(parent(value), share=1.0)
    assert (trace.trace_id, trace.sampled) == (TRACE, sampled)


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01.",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f" {PARENT}",
        f"{PARENT}\n",
    ],
)
def test_a_context_that_is_not_valid_begins_a_new_trace(value: str) -> None:
    trace = tracing.begin([*parent(value), (b"tracestate", b"a=1")])
    assert trace.trace_id != TRACE
    assert (trace.parent_id, trace.state, trace.sampled) == (None, None, False)


def test_two_parents_are_none() -> None:
    assert tracing.begin(parent(PARENT) * 2).trace_id != TRACE


@given(st.binary(max_size=120))
def test_whatever_comes_the_answer_has_a_valid_traceparent(value: bytes) -> None:
    trace = tracing.begin([(b"traceparent", value), (b"tracestate", value)])
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", trace.header)


def test_our_own_share_is_sampled() -> None:
    sampled = sum(tracing.begin([], share=0.3).sampled for _ in range(2000))
    assert 450 < sampled < 750
    assert not any(tracing.begin([]).sampled for _ in range(100))


class Collector:
    """A small HTTP server in the collector's place."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.received.append((self.path, body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def test_sampled_requests_reach_the_collector_as_spans(collector: Collector) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    exporter = SpanExporter(Observability(otlp_endpoint=collector.endpoint + "/"))
    trace = tracing.begin([*parent(PARENT), (b"tracestate", b"a=1")])
    exporter.request(trace, "POST", "/v1/decisions", 200, 0.002, drl__model_version="v1")
    exporter.request(tracing.begin([], share=1.0), "GET", "/v1/models", 503, 0.1)
    exporter.request(tracing.begin([]), "GET", "/not/sampled", 200, 0.1)
    exporter.close()
    ((path, body),) = collector.received
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    first, second = resource.scope_spans[0].spans
    assert first.trace_id.hex() == TRACE
    assert first.parent_span_id.hex() == SPAN
    assert first.span_id.hex() == trace.span_id
    assert (first.name, first.trace_state) == ("POST /v1/decisions", "a=1")
    assert first.end_time_unix_nano - first.start_time_unix_nano == 2_000_000
    attributes = {a.key: a.value.string_value or a.value.int_value for a in first.attributes}
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/decisions",
        "http.response.status_code": 200,
        "drl.model_version": "v1",
    }
    assert (second.parent_span_id, second.status.code) == (b"", 2)


def test_export_needs_an_endpoint() -> None:
    with pytest.raises(SettingsError, match="otlp_endpoint"):
        SpanExporter(Observability())
