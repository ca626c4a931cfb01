"""Events as protocol buffers keep the contract, and no bytes get past it."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_core.protos import telemetry_pb2 as pb
from drl_core.telemetry import protobuf
from drl_core.telemetry.event import SIGNALS, Event, TelemetryError
from tests import strategies


@pytest.mark.property(2)
@settings(max_examples=300, deadline=None)
@given(events=st.lists(strategies.events(), max_size=3))
def test_any_event_survives_protocol_buffers(events: list[Event]) -> None:
    assert protobuf.decode(protobuf.encode(events)) == events


@pytest.mark.property(2)
def test_what_is_not_measured_is_not_zero() -> None:
    for value in (None, 0.0):
        sent = Event(episode_id=1, step=0, syscall_count=value)
        (came,) = protobuf.decode(protobuf.encode([sent]))
        assert isinstance(came, Event)
        assert came.syscall_count == value


@pytest.mark.property(3)
@settings(max_examples=500, deadline=None)
@given(content=st.binary(max_size=300))
def test_arbitrary_bytes_are_events_or_named_errors(content: bytes) -> None:
    try:
        found = protobuf.decode(content)
    except TelemetryError:
        return
    assert all(isinstance(one, Event) or one.field for one in found)


def test_every_field_of_the_event_is_in_the_message() -> None:
    renamed = {"episode_name": "episode_id", "episode_number": "episode_id"}
    renamed |= {"time": "timestamp", "epoch_ms": "timestamp"}
    names = {renamed.get(field.name, field.name) for field in pb.Event.DESCRIPTOR.fields}
    assert names == set(Event.__struct_fields__)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"syscall_count": -1.0}, "syscall_count"),
        ({"bytes_sent": math.nan}, "bytes_sent"),
        ({"bytes_sent": math.inf}, "bytes_sent"),
        ({"stage": 7}, "stage"),
        ({"window_s": 0.0}, "window_s"),
        ({"isolation_level": 4}, "isolation_level"),
        ({"schema_version": 9}, "schema_version"),
        ({"sandbox_id": "no spaces"}, "sandbox_id"),
        ({"step": 2**32 - 1}, "step"),
        ({"severity": 0.5}, "is_malicious"),
        ({"intervention": pb.Intervention(propensity=0.0)}, "intervention.propensity"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], field: str) -> None:
    sound: dict[str, Any] = {"schema_version": 1, "sandbox_id": "s", "episode_name": "e"}
    sound |= {"window_s": 1.0, **dict.fromkeys(SIGNALS[:2], 1.0)}
    good, bad = pb.Event(**sound), pb.Event(**(sound | changes))
    first, second = protobuf.decode(pb.Events(events=[good, bad]).SerializeToString())
    assert isinstance(first, Event)
    assert isinstance(second, TelemetryError)
    assert (second.field, second.record) == (field, 1)
