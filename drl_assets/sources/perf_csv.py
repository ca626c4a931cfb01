"""Reader of a Linux device's `perf stat`, `top` and `ifconfig` CSV: one row per 5 s window.

The columns are those of the FedRL-for-IoT-Security recordings (Huertas Celdran et al., arXiv
2212.14647). One file is one session under one behaviour, which its name tells; it is cut into
episodes of 50 windows. A row that is not whole or not numeric becomes a dead letter, and the
recording goes on.
"""

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drl_assets.sources.records import (
    UNREADABLE,
    Item,
    NoEvidence,
    Oversized,
    damaged,
    finite,
    line_blocks,
    open_binary,
    refuse,
    stem,
)
from drl_core.telemetry.event import Event, Stage, TelemetryError, dead_letter, validate_event

WINDOWS_PER_EPISODE = 50
DEFAULT_WINDOW_S = 5.0

Cells = dict[str, str]


def _as_is(value: float) -> float:
    return value


SIGNALS: dict[str, tuple[str, Callable[[float], float]]] = {
    "syscall_count": ("raw_syscalls:sys_enter", _as_is),
    "file_read_count": ("filemap:mm_filemap_add_to_page_cache", _as_is),  # a proxy: pages read in
    "file_write_count": ("writeback:writeback_dirty_page", _as_is),  # a proxy: pages made dirty
    "network_connections": ("sock:inet_sock_set_state", _as_is),
    "bytes_sent": ("iface0TX", _as_is),
    "bytes_received": ("iface0RX", _as_is),
    "child_processes": ("task:task_newtask", _as_is),
    "cpu_usage": ("cpuIdle", lambda idle: max(0.0, 100.0 - idle)),
    "memory_usage": ("ramUsed", lambda kib: kib / 1024.0),
}
"""Signal -> column and conversion. Registry, privilege and injection are not measured."""

EXTRA = {
    "page_faults": "page-faults",
    "context_switches": "cs",
    "block_requests": "block:block_getrq",
    "processes_executed": "sched:sched_process_exec",
    "signals_delivered": "signal:signal_deliver",
}
_ENCRYPTED = "numEncrypted"

_BEHAVIOUR = re.compile(
    r"(?:^|_)(normal|ransom|rootkit_[a-z]+|cnc_opt_\d+|cnc_(?:backdoor_)?[a-z]+)(?=[_.]|$)"
)
_ATTACK = {"ransom": "ransomware", "cnc_jakoritar": "cnc_backdoor_jakoritar"}


def sniff(head: bytes, path: Path) -> bool:
    """True where the first line is a CSV header with at least three of the columns read here."""
    columns = set(head.split(b"\n", 1)[0].decode("utf-8", "replace").strip().split(","))
    return len(columns & {column for column, _ in SIGNALS.values()}) >= 3


def label(session: str) -> tuple[bool | None, str | None]:
    """(is_malicious, attack_type) by the file's name; (None, None) where it tells neither."""
    found = _BEHAVIOUR.search(session.lower())
    if found is None:
        return None, None
    if found[1] == "normal":
        return False, None
    return True, _ATTACK.get(found[1], found[1])


def read(
    path: Path, *, sandbox_id: str | None = None, stage: Stage | None = None
) -> Iterator[Item]:
    """Events of one recording, in the order of its rows; `window_s` is the column `seconds`."""
    session = stem(path)
    is_malicious, attack_type = label(session)
    constant = {
        "sandbox_id": sandbox_id or "perf-csv",
        "stage": stage or Stage.POSITIVE,
        "session_id": session,
        "is_malicious": is_malicious,
        "attack_type": attack_type,
    }
    windows = 0
    encrypted: float | None = None
    try:
        for number, cells in _rows(path):
            if not isinstance(cells, dict):
                yield refuse(path, "columns", cells, number)
                continue
            try:
                fields, level = _window(cells, encrypted)
                episode, step = divmod(windows, WINDOWS_PER_EPISODE)
                place = {"episode_id": f"{session}#{episode}", "step": step}
                event: Event = validate_event(constant | fields | place, number)
            except TelemetryError as error:
                payload = ",".join(cells.values()).encode()
                yield dead_letter(error, path.name, number, payload)
                continue
            windows, encrypted = windows + 1, level
            yield event
    except UNREADABLE as cause:
        yield damaged(path, cause, windows + 1)
        return
    if not windows:
        yield NoEvidence(path.name, "the recording holds no whole row")


def _rows(path: Path) -> Iterator[tuple[int, Cells | str]]:
    """Rows by number (the header is 0): their cells by column, or what is wrong with them."""
    header: list[str] | None = None
    number = 0
    with open_binary(path) as file:
        for block in line_blocks(file):
            lines = [b""] if isinstance(block, Oversized) else block.splitlines()
            for line in lines:
                text = line.decode("utf-8", "backslashreplace")
                cells = next(csv.reader([text]), []) if len(text) < csv.field_size_limit() else []
                if header is None:
                    header = [cell.strip().lstrip("\ufeff") for cell in cells]
                elif len(cells) == len(header):
                    yield number, dict(zip(header, cells, strict=True))
                elif text.strip() or isinstance(block, Oversized):
                    yield number, f"{len(cells)} cells, {len(header)} expected"
                number += 1


def _window(cells: Cells, encrypted: float | None) -> tuple[dict[str, Any], float | None]:
    """The fields of one row, and its level of `numEncrypted`."""
    fields: dict[str, Any] = {}
    for name, (column, convert) in SIGNALS.items():
        value = _number(cells, column)
        fields[name] = None if value is None else convert(value)
    extra = {name: _number(cells, column) for name, column in EXTRA.items()}
    level = _number(cells, _ENCRYPTED)
    if level is not None:  # the level tells sessions apart; what it rises by is the damage
        extra["files_encrypted"] = 0.0 if encrypted is None else max(0.0, level - encrypted)
    fields["extra"] = {name: value for name, value in extra.items() if value is not None}
    fields["timestamp"] = _number(cells, "timestamp")
    seconds = _number(cells, "seconds")
    fields["window_s"] = DEFAULT_WINDOW_S if seconds is None else seconds
    return fields, encrypted if level is None else level


def _number(cells: Cells, column: str) -> float | None:
    """A cell as a number; None where the column or the value is missing: not measured."""
    text = cells.get(column, "").strip()
    if not text:
        return None
    value = finite(text)
    if value is None:
        raise TelemetryError(column, f"a finite number expected, got {text[:40]!r}")
    return value
