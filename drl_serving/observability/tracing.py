"""W3C trace context propagation: the caller's `traceparent` in, ours out, sampled or not.

`begin` reads the request's headers and gives the trace that the answer, the log lines and the
audit records of this request carry. Exporting spans is `drl_serving.observability.otlp_exporter`'s
business.
"""

import random
import re
from collections.abc import Iterable
from contextvars import ContextVar

from msgspec import Struct

_PARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_STATE = re.compile(rb"[\x20-\x7e]{1,512}")
_bits = random.getrandbits  # an id must be unlikely to collide, it is no secret


class Trace(Struct, frozen=True):
    """The part of a trace that one request is."""

    trace_id: str
    """32 hex digits, the caller's where it sent a valid traceparent."""
    span_id: str
    """16 hex digits, ours."""
    sampled: bool
    """Whether the trace is recorded: the caller's decision, or our own share."""
    parent_id: str | None = None
    """The caller's span, where it named one."""
    state: bytes | None = None
    """The caller's tracestate, to be passed on unchanged."""

    @property
    def header(self) -> bytes:
        """The traceparent to answer with, and to send on."""
        return f"00-{self.trace_id}-{self.span_id}-0{int(self.sampled)}".encode()


current: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""The trace of the request at hand, for logs and audit records."""


def begin(headers: Iterable[tuple[bytes, bytes]], share: float = 0.0) -> Trace:
    """The trace of a request; it is `current` from now on.

    Args:
        headers: the request's, names in lower case, as ASGI gives them.
        share: of the requests without a caller's sampling decision, how many are sampled.

    Returns:
        A child of the caller's span where exactly one valid traceparent came, else a new trace.
    """
    parents: list[bytes] = []
    states: list[bytes] = []
    for name, value in headers:
        if name == b"traceparent":
            parents.append(value)
        elif name == b"tracestate":
            states.append(value)
    trace = _child(parents, states) if parents else None
    if trace is None:
        sampled = share > 0 and random.random() < share  # noqa: S311
        trace = Trace(f"{_bits(128) or 1:032x}", _span_id(), sampled)
    current.set(trace)
    return trace


def _child(parents: list[bytes], states: list[bytes]) -> Trace | None:
    """None where the caller's context is not valid: its tracestate is then dropped as well."""
    found = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == b"00" and more is not None:
        return None
    state = b",".join(states)
    return Trace(
        trace_id.decode(),
        _span_id(),
        bool(int(flags, 16) & 1),
        parent_id.decode(),
        state if _STATE.fullmatch(state) else None,
    )


def _span_id() -> str:
    return f"{_bits(64) or 1:016x}"
