"""CAPE and Cuckoo reports: what their calls count as, and what they do not prove."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sandbox_reports import cape_call, cape_report, cuckoo_call, cuckoo_report

from drl_assets import sources
from drl_assets.sources import NoEvidence, sandbox_report
from drl_core.telemetry.event import DeadLetter, Event

Write = Callable[..., Path]


def episode(path: Path) -> list[Event]:
    items = list(sources.read(path))
    assert all(isinstance(item, Event) for item in items), items
    return items  # type: ignore[return-value]


@pytest.fixture
def cape(write: Write) -> Callable[..., list[Event]]:
    return lambda *calls, **top: episode(write("report.json", cape_report(*calls, **top)))


def test_repeated_calls_count_and_idle_windows_are_measured_zeros(
    cape: Callable[..., list[Event]],
) -> None:
    events = cape(
        cape_call("NtReadFile", repeated=4),
        cape_call("NtWriteFile", "2024-05-01 10:00:00.999"),
        cape_call("MoveFileWithProgressW", "2024-05-01 10:00:03,500", repeated="2"),
    )
    assert [e.step for e in events] == [0, 1, 2, 3]
    assert [e.syscall_count for e in events] == [6, 0, 0, 3]
    assert [e.file_read_count for e in events] == [5, 0, 0, 0]
    assert [e.file_write_count for e in events] == [1, 0, 0, 3]
    assert {e.bytes_sent for e in events} == {None}
    assert {e.cpu_usage for e in events} == {None}
    assert len({e.episode_id for e in events}) == 1
    assert events[0].artifact_sha256 == events[0].session_id == "ab" * 32
    assert events[3].timestamp_ms == events[0].timestamp_ms + 3000  # type: ignore[operator]


OTHER = "0x000001a0"


@pytest.mark.parametrize(
    ("calls", "injects"),
    [
        ([cape_call("NtMapViewOfSection", ProcessHandle="0xffffffff")], False),
        ([cape_call("NtMapViewOfSection", ProcessHandle="0xffffffffffffffff")], False),
        ([cape_call("NtMapViewOfSection", ProcessHandle=OTHER)], True),
        ([cape_call("NtQueueApcThread", ProcessId="1000")], False),
        ([cape_call("NtQueueApcThread", ProcessId="1001")], True),
        ([cape_call("WriteProcessMemory", ProcessHandle=OTHER, status=False)], False),
        ([cape_call("SetThreadContext", ThreadHandle="0x98")], False),
        (
            [
                cape_call("NtOpenProcess", ProcessHandle=OTHER, ProcessIdentifier="1000"),
                cape_call("WriteProcessMemory", ProcessHandle=OTHER),
            ],
            False,
        ),
    ],
)
def test_injection_is_a_write_mapping_or_thread_in_another_process(
    cape: Callable[..., list[Event]], calls: list[dict[str, Any]], injects: bool
) -> None:
    assert cape(*calls)[0].code_injection_detected is injects


def test_cuckoo_names_the_target_process_before_the_process_names_itself(write: Write) -> None:
    own, other = ({"process_identifier": pid, "process_handle": "0x90"} for pid in (2000, 2001))
    for target, injects in ((own, False), (other, True)):
        report = cuckoo_report(cuckoo_call("WriteProcessMemory", arguments=target))
        assert episode(write("r.json", report))[0].code_injection_detected is injects


def test_registry_counts_changes_and_privilege_counts_attempts(
    cape: Callable[..., list[Event]],
) -> None:
    def flags(call: dict[str, Any]) -> tuple[bool | None, bool | None]:
        first = cape(call)[0]
        return first.registry_modification, first.privilege_escalation_attempt

    assert flags(cape_call("RegSetValueExW")) == (True, False)
    assert flags(cape_call("NtDeleteValueKey")) == (True, False)
    assert flags(cape_call("RegSetValueExW", status="false")) == (False, False)
    assert flags(cape_call("RegQueryValueExW")) == (False, False)
    assert flags(cape_call("LookupPrivilegeValueW", status=False)) == (False, True)
    assert flags(cape_call("NtOpenProcessToken", DesiredAccess="0x00000008")) == (False, False)
    assert flags(cape_call("NtOpenProcessToken", DesiredAccess="0x00000028")) == (False, True)


def test_a_creation_that_two_functions_log_is_one_child(cape: Callable[..., list[Event]]) -> None:
    events = cape(
        cape_call("NtCreateUserProcess", ProcessId="1500"),
        cape_call("CreateProcessInternalW", ProcessId="1500"),
        cape_call("CreateProcessInternalW", ProcessId="1501"),
        cape_call("CreateProcessInternalW", ProcessId="1502", status=False),
    )
    assert events[0].child_processes == 2


def test_network_adds_calls_and_the_flows_inside_the_span(write: Write) -> None:
    calls = [cuckoo_call("connect", category="network"), cuckoo_call("NtClose", 1717617234.0)]
    events = episode(write("r.json", cuckoo_report(*calls)))
    assert [e.network_connections for e in events] == [2, 0, 0]


@pytest.mark.parametrize(
    ("top", "labels"),
    [
        ({}, (True, 0.8, "QakBot")),
        ({"malscore": "7.5"}, (True, 0.75, "QakBot")),
        ({"malscore": 14}, (True, 1.0, "QakBot")),
        ({"detections": [{"family": "SunCrypt", "details": []}]}, (True, 0.8, "SunCrypt")),
        ({"detections": ["Emotet"]}, (True, 0.8, "Emotet")),
        ({"detections": None, "malfamily": "Zeus"}, (True, 0.8, "Zeus")),
        ({"detections": []}, (True, 0.8, None)),
        ({"malscore": 5.9}, (None, None, None)),
        ({"malscore": None}, (None, None, None)),
        ({"malscore": "high"}, (None, None, None)),
    ],
)
def test_the_score_decides_and_a_low_one_is_not_benign(
    cape: Callable[..., list[Event]], top: dict[str, Any], labels: tuple[Any, ...]
) -> None:
    first = cape(cape_call("NtClose"), **top)[0]
    assert (first.is_malicious, first.severity, first.attack_type) == labels


def test_cuckoo_is_labelled_by_its_own_score(write: Write) -> None:
    for score, malicious in ((8.2, True), ("6.0", True), (0.8, None), (None, None)):
        report = cuckoo_report(cuckoo_call("NtClose"), score=score)
        assert episode(write("r.json", report))[0].is_malicious is malicious


@pytest.mark.parametrize(
    "behavior", [{}, {"processes": []}, {"processes": None}, [], None, {"processes": [{"pid": 4}]}]
)
def test_a_report_without_behaviour_is_no_evidence(write: Write, behavior: Any) -> None:
    items = list(sources.read(write("failed.json.gz", cape_report(behavior=behavior))))
    assert [type(item) for item in items] == [NoEvidence]
    assert items[0].source == "failed.json.gz"  # type: ignore[union-attr]


def test_calls_without_a_valid_time_are_left_out_and_said(write: Write) -> None:
    report = cape_report(
        cape_call("NtClose"), cape_call("NtClose", "yesterday"), cape_call("NtClose", "0")
    )
    items = list(sources.read(write("r.json", report)))
    assert [e.syscall_count for e in items if isinstance(e, Event)] == [1]
    letters = [item for item in items if isinstance(item, DeadLetter)]
    assert [letter.field for letter in letters] == ["behavior.processes.item.calls.timestamp"]


def test_a_clock_that_jumps_leaves_a_bounded_episode(cape: Callable[..., list[Event]]) -> None:
    events = cape(cape_call("NtClose"), cape_call("NtClose", "2031-01-01 00:00:00,000"))
    assert len(events) == sandbox_report.MAX_IDLE_WINDOWS + 2
    assert [e.step for e in events] == list(range(len(events)))
    assert events[-1].syscall_count == 1


@pytest.mark.property(3)
@pytest.mark.parametrize("damage", ["json", "gzip", "flipped"])
def test_a_damaged_report_gives_a_dead_letter_and_no_episode(tmp_path: Path, damage: str) -> None:
    whole = json.dumps(cape_report(*[cape_call("NtClose", repeated=i) for i in range(500)]))
    packed = bytearray(gzip.compress(whole.encode()))
    packed[len(packed) // 2] ^= 0xFF
    content = {
        "json": whole[: len(whole) // 2].encode(),
        "gzip": gzip.compress(whole.encode())[:-100],
        "flipped": bytes(packed),
    }[damage]
    path = tmp_path / "report.json"
    path.write_bytes(content)
    items = list(sources.read(path))
    assert [type(item) for item in items] == [DeadLetter]
    assert "unreadable" in items[0].reason  # type: ignore[union-attr]


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_kind_of_report_is_found_whatever_the_order_of_its_keys(
    write: Write, indent: int | None, reverse: bool
) -> None:
    padding = {"strings": ["x" * 40] * 5000}
    cape = {**padding, **cape_report(cape_call("NtClose"))}
    cuckoo = {**padding, **cuckoo_report(cuckoo_call("NtClose"))}
    for expected, report in (("cape", cape), ("cuckoo", cuckoo)):
        ordered = dict(reversed(report.items())) if reverse else report
        path = write("report.json", json.dumps(ordered, indent=indent))
        assert sources.detect(path) == expected
        assert {e.sandbox_id for e in episode(path)} == {expected}
