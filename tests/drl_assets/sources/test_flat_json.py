"""The flat JSON reader: what is whole is read, what is wrong costs itself only."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_assets import sources
from drl_assets.sources import Item, NoEvidence
from drl_assets.sources.flat_json import _Splitter
from drl_core.telemetry.event import MAX_RECORD_BYTES, DeadLetter, Event, Stage, validate_event

Write = Callable[..., Path]


def event(step: int = 0, **fields: Any) -> dict[str, Any]:
    return {"episode_id": "e", "step": step} | fields


def lines(*records: Any) -> bytes:
    parts = (r if isinstance(r, bytes) else json.dumps(r).encode() for r in records)
    return b"\n".join(parts) + b"\n"


def sorted_out(path: Path, **how: Any) -> tuple[list[Event], list[DeadLetter], list[Item]]:
    items = list(sources.read(path, **how))
    events = [item for item in items if isinstance(item, Event)]
    dead = [item for item in items if isinstance(item, DeadLetter)]
    return events, dead, [item for item in items if isinstance(item, NoEvidence)]


REPORT = {  # the original report's flat record, as it stands
    "episode_id": 0,
    "step": 0,
    "is_malicious": True,
    "severity": 0.8,
    "syscall_count": 150,
    "memory_usage": 250.0,
    "registry_modification": True,
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".gz", ".telemetry"])
@pytest.mark.parametrize("form", ["array", "lines", "indented array", "one indented object"])
def test_the_reports_flat_json_is_read_in_every_form(write: Write, form: str, suffix: str) -> None:
    second = REPORT | {"step": 1}
    content = {
        "array": json.dumps([REPORT, second]),
        "lines": lines(REPORT, second),
        "indented array": json.dumps([REPORT, second], indent=2),
        "one indented object": json.dumps(REPORT, indent=2),
    }[form]
    events, dead, none = sorted_out(write(f"telemetry{suffix}", content))
    assert not dead
    assert not none
    assert [e.step for e in events] == ([0] if form == "one indented object" else [0, 1])
    assert events[0] == validate_event(REPORT)


BAD: dict[str, tuple[bytes, str]] = {
    "truncated": (b'{"episode_id": "e", "step": 1', "$"),
    "wrong type": (b'{"episode_id": "e", "step": 1, "syscall_count": "many"}', "syscall_count"),
    "NaN": (b'{"episode_id": "e", "step": 1, "cpu_usage": NaN}', "$"),
    "Infinity": (b'{"episode_id": "e", "step": 1, "cpu_usage": Infinity}', "$"),
    "above float32": (b'{"episode_id": "e", "step": 1, "bytes_sent": 1e39}', "bytes_sent"),
    "negative": (b'{"episode_id": "e", "step": 1, "bytes_sent": -1}', "bytes_sent"),
    "unknown stage": (b'{"episode_id": "e", "step": 1, "stage": "third"}', "stage"),
    "unknown version": (b'{"episode_id": "e", "step": 1, "schema_version": 2}', "schema_version"),
    "not UTF-8": (b'{"episode_id": "\xff\xfe", "step": 1}', "$"),
    "missing field": (b'{"step": 1}', "episode_id"),
    "no object": (b"[1, 2]", "$"),
    "oversized": (b'{"episode_id": "e", "step": 1, "x": "%s"}' % (b"x" * MAX_RECORD_BYTES), "$"),
}


@pytest.mark.property(3)
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("form", ["lines", "array"])
def test_a_bad_record_is_named_and_the_rest_goes_on(write: Write, form: str, name: str) -> None:
    bad, field = BAD[name]
    if form == "array" and name == "truncated":
        pytest.skip("in an array this swallows its neighbour; see the test of cut arrays")
    whole = [json.dumps(event(step)).encode() for step in (0, 2)]
    content = (
        lines(whole[0], bad, whole[1])
        if form == "lines"
        else b"[" + b", ".join((whole[0], bad, whole[1])) + b"]"
    )
    events, dead, _ = sorted_out(write("t.json", content))
    assert sorted(e.step for e in events) == [0, 2]
    assert [(d.record, d.field) for d in dead] == [(1, field)]


def test_an_array_that_is_cut_keeps_its_whole_elements(write: Write) -> None:
    whole = json.dumps([event(0), event(1)])
    events, dead, _ = sorted_out(write("t.json", whole[:-10]))
    assert [e.step for e in events] == [0]
    assert "truncated" in dead[0].reason


@pytest.mark.parametrize("form", ["lines", "array"])
def test_a_gzip_that_ends_early_keeps_what_came_before(tmp_path: Path, form: str) -> None:
    records = [event(step, attack_type=None, syscall_count=step * 7919) for step in range(5000)]
    raw = lines(*records) if form == "lines" else json.dumps(records).encode()
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(raw)[:-500])
    events, dead, _ = sorted_out(path)
    assert 4000 < len(events) < 5000
    assert [e.step for e in events] == list(range(len(events)))
    assert any("end-of-stream" in letter.reason for letter in dead)


def test_what_is_given_overrides_and_what_is_not_stays(write: Write) -> None:
    path = write("t.jsonl", lines(event(sandbox_id="own", stage="negative")))
    assert sorted_out(path)[0][0].sandbox_id == "own"
    changed = sorted_out(path, sandbox_id="other", stage=Stage.POSITIVE)[0][0]
    assert (changed.sandbox_id, changed.stage) == ("other", Stage.POSITIVE)


def test_ground_truth_that_is_given_replaces_labels_that_contradict_it(write: Write) -> None:
    path = write("t.jsonl", lines(event(is_malicious=True, severity=0.5, attack_type="worm")))
    kept = sorted_out(path, label="malicious")[0][0]
    assert (kept.is_malicious, kept.severity, kept.attack_type) == (True, 0.5, "worm")
    changed = sorted_out(path, label="benign")[0][0]
    assert (changed.is_malicious, changed.severity, changed.attack_type) == (False, None, None)


@pytest.mark.parametrize("content", [b"", b"[]", b"\n\n", b"[ ]\n"])
def test_a_file_without_a_record_is_no_evidence(write: Write, content: bytes) -> None:
    events, dead, none = sorted_out(write("t.json", content))
    assert not events
    assert not dead
    assert len(none) == 1


def test_a_byte_order_mark_is_no_part_of_the_first_record(write: Write) -> None:
    for content in (lines(event()), json.dumps([event()]).encode()):
        events, dead, _ = sorted_out(write("t.json", b"\xef\xbb\xbf" + content))
        assert len(events) == 1
        assert not dead


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(
    st.lists(st.dictionaries(st.text(), json_values)),
    st.integers(1, 50),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_an_array_splits_into_its_elements_wherever_the_chunks_are_cut(
    records: list[dict[str, Any]], width: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(records, indent=indent, ensure_ascii=ascii_only).encode(
        "utf-8", "surrogatepass"
    )
    splitter = _Splitter()
    found = [
        raw
        for start in range(0, len(text), width)
        for raw, _ in splitter.feed(text[start : start + width])
    ]
    assert [json.loads(raw.decode("utf-8", "surrogatepass")) for raw in found] == records
    assert not splitter.left()
