"""The event contract: round trips, refusals that name their field, sanitising."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_core.telemetry.event import (
    MAX_RECORD_BYTES,
    SIGNALS,
    Event,
    Process,
    TelemetryError,
    encode_event,
    encode_lines,
    parse_event,
    parse_lines,
    sanitize,
    validate_event,
)
from tests import strategies

finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FIELDS = [*Event.__struct_fields__, "unknown"]


@pytest.mark.property(2)
@settings(max_examples=100, deadline=None)
@given(event=strategies.events())
def test_any_event_survives_json_and_messagepack(event: Event) -> None:
    assert parse_event(encode_event(event)) == event
    packed = msgspec.msgpack.encode(event)
    assert msgspec.msgpack.decode(packed, type=Event) == event
    again = msgspec.msgpack.decode(packed, type=Event)
    assert parse_event(encode_event(again)) == event


@pytest.mark.property(2)
@settings(max_examples=100, deadline=None)
@given(events=st.lists(strategies.events(), max_size=3))
def test_lines_hold_the_same_events_in_the_same_order(events: list[Event]) -> None:
    assert parse_lines(encode_lines(events)) == (events, [])


@pytest.mark.property(3)
@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=200))
def test_no_bytes_crash_the_parser(raw: bytes) -> None:
    with pytest.raises(TelemetryError) as refused:
        parse_event(raw, 7)
    assert refused.value.field
    assert refused.value.record == 7
    events, dead = parse_lines(raw, "file")
    assert events == []
    assert len(dead) == sum(bool(line.strip()) for line in raw.splitlines())
    assert all(letter.field and letter.reason for letter in dead)


@pytest.mark.property(3)
@settings(max_examples=200, deadline=None)
@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5),
    whole=st.booleans(),
)
def test_any_json_object_is_an_event_or_an_error_that_names_a_field_of_it(
    fields: dict[str, Any], whole: bool
) -> None:
    body = ({"episode_id": 1, "step": 0} if whole else {}) | fields
    raw = json.dumps(body).encode()
    events, dead = parse_lines(raw)
    for letter in dead:
        assert letter.field.split(".")[0].split("[")[0] in FIELDS
    for event in events:
        assert parse_event(encode_event(event)) == event
    assert len(events) + len(dead) == 1


@pytest.mark.property(3)
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"step": -1}, "step"),
        ({"step": None}, "step"),
        ({"step": 2**31}, "step"),
        ({"episode_id": ""}, "episode_id"),
        ({"episode_id": "a\0b"}, "episode_id"),
        ({"episode_id": 2**63}, "episode_id"),
        ({"session_id": "a\0b"}, "session_id"),
        ({"is_malicious": True, "attack_type": "a\0b"}, "attack_type"),
        ({"sandbox_id": "no spaces"}, "sandbox_id"),
        ({"sandbox_id": "line\n"}, "sandbox_id"),
        ({"artifact_sha256": "abc"}, "artifact_sha256"),
        ({"schema_version": 2}, "schema_version"),
        ({"stage": "late"}, "stage"),
        ({"window_s": 0}, "window_s"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"timestamp": "2024-01-01T00:00:00"}, "timestamp"),
        ({"timestamp": "0001-01-01T00:00:00+14:00"}, "timestamp"),
        ({"timestamp": "9999-12-31T23:59:59-14:00"}, "timestamp"),
        ({"syscall_count": -1}, "syscall_count"),
        ({"syscall_count": 1e39}, "syscall_count"),
        ({"cpu_usage": "high"}, "cpu_usage"),
        ({"registry_modification": 1}, "registry_modification"),
        ({"isolation_level": 4}, "isolation_level"),
        ({"extra": {"x": "y"}}, "extra"),
        ({"process": {"pid": -1}}, "process.pid"),
        ({"intervention": {}}, "intervention.action"),
        ({"process": {"pid": 10**30}}, "process.pid"),
        ({"severity": 0.5}, "is_malicious"),
        ({"is_malicious": True, "severity": 2}, "severity"),
        ({"intervention": {"action": 5, "propensity": 1, "outcome": "applied"}}, "intervention"),
        ({"intervention": {"action": 0, "propensity": 0, "outcome": "applied"}}, "intervention"),
    ],
)
def test_a_wrong_value_is_refused_by_its_field(change: dict[str, Any], field: str) -> None:
    raw = json.dumps({"episode_id": "e", "step": 0} | change).encode()
    with pytest.raises(TelemetryError) as refused:
        parse_event(raw, 3)
    assert refused.value.field.startswith(field)
    assert str(refused.value).startswith("record 3: ")


@pytest.mark.property(3)
def test_a_bad_line_stops_no_other_and_keeps_its_number() -> None:
    good = [Event(episode_id="e", step=n) for n in range(3)]
    lines = [encode_event(e) for e in good]
    nested = b'{"episode_id":"e","step":0,"extra":' + b"[" * 100_000
    oversized = b'{"episode_id":"e","step":0,"x":"' + b"x" * MAX_RECORD_BYTES + b'"}'
    block = b"\n".join([lines[0], b"rubbish", lines[1], nested, b"", oversized, lines[2]])
    events, dead = parse_lines(block, "f", first_record=10)
    assert events == good
    assert [letter.record for letter in dead] == [11, 13, 15]
    assert "at most" in dead[-1].reason
    assert all(len(letter.payload) <= 2048 for letter in dead)


@pytest.mark.property(3)
def test_a_mapping_is_held_to_the_same_rules() -> None:
    assert validate_event({"episode_id": 5, "step": 0}).key == ("default", "5", 0)
    with pytest.raises(TelemetryError, match="window_s"):
        validate_event({"episode_id": 5, "step": 0, "window_s": float("nan")})


@pytest.mark.property(11)
def test_a_missing_field_takes_its_default_and_a_missing_signal_is_null() -> None:
    event = parse_event(b'{"episode_id":1,"step":2}')
    assert (event.sandbox_id, event.stage.value, event.window_s) == ("default", "positive", 1.0)
    assert [getattr(event, name) for name in SIGNALS] == [None] * 12
    assert parse_event(b'{"episode_id":1,"step":2,"syscall_count":null}') == event


@settings(max_examples=100, deadline=None)
@given(event=strategies.events())
def test_sanitising_twice_is_sanitising_once(event: Event) -> None:
    once = sanitize(event)
    assert sanitize(once) == once


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        (r"C:\Users\Ann Lee\x.exe", r"C:\Users\USER\x.exe"),
        (r"c:\documents and settings\ann\x", r"c:\documents and settings\USER\x"),
        ("/home/ann/x", "/home/USER/x"),
        ("/Users/ann/x", "/Users/USER/x"),
        (r"\\fileserver\share\x", r"\\HOST\share\x"),
        ("/usr/bin/x", "/usr/bin/x"),
    ],
)
def test_user_and_host_names_leave_the_process(path: str, clean: str) -> None:
    process = Process(name=path, image_path=path, pid=1)
    event = sanitize(Event(episode_id="e", step=0, process=process))
    assert event.process == Process(name=clean, image_path=clean, pid=1)
