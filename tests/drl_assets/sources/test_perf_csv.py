"""The perf CSV: one row a window, one file a session, the label in its name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from drl_assets import sources
from drl_assets.sources import NoEvidence, perf_csv
from drl_core.telemetry.event import DeadLetter, Event

Write = Callable[..., Path]

COLUMNS = (
    "time,timestamp,seconds,cpuIdle,ramUsed,iface0RX,iface0TX,numEncrypted,"
    "filemap:mm_filemap_add_to_page_cache,raw_syscalls:sys_enter,sock:inet_sock_set_state,"
    "task:task_newtask,writeback:writeback_dirty_page,page-faults"
)


def row(number: int, encrypted: int = 0, idle: str = "60.0") -> str:
    when = 1660632205562 + number * 7000
    return f"{number * 5},{when},5.02,{idle},139264,67,974,{encrypted},1,4000,2,3,7,9"


def recording(*rows: str) -> str:
    return "\n".join((COLUMNS, *rows)) + "\n"


def test_columns_become_signals_in_their_units(write: Write) -> None:
    (event,) = sources.read(write("ransom_x_5s.csv.gz", recording(row(0))))
    assert isinstance(event, Event)
    assert event.session_id == "ransom_x_5s"
    assert event.window_s == 5.02
    assert event.timestamp_ms == 1660632205562
    assert (event.syscall_count, event.file_read_count, event.file_write_count) == (4000, 1, 7)
    assert (event.network_connections, event.child_processes) == (2, 3)
    assert (event.bytes_sent, event.bytes_received) == (974, 67)
    assert (event.cpu_usage, event.memory_usage) == (40.0, 136.0)
    assert event.registry_modification is None
    assert event.code_injection_detected is None


def test_a_session_is_cut_into_episodes_of_fifty_windows(write: Write) -> None:
    events = list(sources.read(write("s.csv", recording(*map(row, range(120))))))
    assert all(isinstance(e, Event) for e in events)
    places = [(e.episode_id, e.step) for e in events if isinstance(e, Event)]
    assert places[49:51] == [("s#0", 49), ("s#1", 0)]
    assert places[-1] == ("s#2", 19)


def test_damage_is_what_the_count_of_encrypted_files_rises_by(write: Write) -> None:
    levels = (40, 40, 43, 0, 2)
    rows = [row(i, level) for i, level in enumerate(levels)]
    events = sources.read(write("s.csv", recording(*rows)))
    rises = [e.extra["files_encrypted"] for e in events if isinstance(e, Event) and e.extra]
    assert rises == [0, 0, 3, 0, 2]


@pytest.mark.property(3)
@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ("1,2,3", "columns"),
        (row(1) + ",9", "columns"),
        (row(1, idle="idle"), "cpuIdle"),
        (row(1, idle="nan"), "cpuIdle"),
        (row(1).replace("4000", "-4000"), "syscall_count"),
        (row(1).replace("4000", "1e39"), "syscall_count"),
        (row(1).replace("5.02", "0"), "window_s"),
        ("\x00" * 40, "columns"),
        ("x" * 200_000, "columns"),
    ],
)
def test_a_malformed_row_is_named_and_the_recording_goes_on(
    write: Write, bad: str, field: str
) -> None:
    items = list(sources.read(write("s.csv", recording(row(0), bad, row(2)))))
    assert [e.step for e in items if isinstance(e, Event)] == [0, 1]
    assert [(d.record, d.field) for d in items if isinstance(d, DeadLetter)] == [(2, field)]


def test_an_empty_cell_is_not_measured(write: Write) -> None:
    (event,) = sources.read(write("s.csv", recording(row(0, idle=""))))
    assert isinstance(event, Event)
    assert event.cpu_usage is None


def test_a_recording_of_no_rows_is_no_evidence(write: Write) -> None:
    items = list(sources.read(write("s.csv", COLUMNS + "\n")))
    assert [type(item) for item in items] == [NoEvidence]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("normal_expfs_online_samples_1_2022-08-18-08-31_5s", (False, None)),
        ("incompl_installs_normal_online_samples_1", (False, None)),
        ("ransom_as_dirtrap_expfs", (True, "ransomware")),
        ("failed_crypto_import_ransom_online_samples_1", (True, "ransomware")),
        ("rootkit_bdvl_as_removerk", (True, "rootkit_bdvl")),
        ("cnc_backdoor_jakoritar_new", (True, "cnc_backdoor_jakoritar")),
        ("old_cnc_jakoritar_as_changeip", (True, "cnc_backdoor_jakoritar")),
        ("cnc_thetick_as_dirtrap", (True, "cnc_thetick")),
        ("cnc_opt_2_sysinfo_as_dirtrap", (True, "cnc_opt_2")),
        ("abnormal_load", (None, None)),
        ("device7", (None, None)),
    ],
)
def test_the_label_stands_in_the_files_name(
    name: str, label: tuple[bool | None, str | None]
) -> None:
    assert perf_csv.label(name) == label
