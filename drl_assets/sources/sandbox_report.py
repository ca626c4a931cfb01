"""Reader of CAPEv2 and Cuckoo reports: API calls of all processes -> one episode of windows.

A report.json of any size comes in as a stream and leaves as the events of one episode: calls are
added up per millisecond while they pass by, so memory grows with the length of the run and not
with the number of calls. Windows begin at the first call; windows without calls between the first
and the last exist with zero counts (nothing was called, and that was measured). What a call counts
as is in `drl_assets.sources.report_calls`.

Limits: of an idle stretch (a long sleep, a guest clock that was set) at most `MAX_IDLE_WINDOWS` are
kept, and windows after `MAX_WINDOWS` are dropped with a dead letter that says so. A report that
cannot be read to its end gives no episode: its processes stand one after another, so every window
would count too little. Times are the guest's clock, taken as UTC.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import ijson

from drl_assets.sources.records import (
    UNREADABLE,
    Item,
    NoEvidence,
    damaged,
    finite,
    open_binary,
    refuse,
    stem,
)
from drl_assets.sources.report_calls import CallCounts
from drl_core.telemetry.event import Stage, TelemetryError, dead_letter, validate_event

WINDOW_S = 1.0
MAX_IDLE_WINDOWS = 300
MAX_WINDOWS = 20_000
MALICIOUS_SCORE = 6.0
"""`malscore` (CAPE) or `info.score` (Cuckoo) from which a report counts as malicious; below it says
nothing, and the episode stays unlabelled."""

_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")
_CAPE = re.compile(rb'"(?:malscore|curtain|CAPE|detections2pid)"\s*:|-CAPE"|"name"\s*:\s*"CAPE"')
_CUCKOO = re.compile(rb'"info"\s*:\s*\{(?s:.){0,4000}?"version"\s*:\s*"[12]\.\d+(\.\d+|-dev)?"')
_CAPE_KEYS = {"malscore", "curtain", "CAPE", "detections", "detections2pid", "ttps"}
_REPORT_KEYS = {"behavior", "info", "target", "signatures"}
_PROCESS = "behavior.processes.item"
_CALL = f"{_PROCESS}.calls.item"
_FACTS = {
    "info.timeout",
    "info.score",
    "malscore",
    "target.file.sha256",
    "detections",
    "detections.item",
    "detections.item.family",
    "malfamily",
}
_FLOWS = {"network.tcp.item.time", "network.udp.item.time"}
_READ_BYTES = 1 << 18
_MAX_PREFIX = 4096
"""Every level of nesting costs the parser a copy of its path, so a bomb of brackets has to be
noticed before it eats the memory: the path is watched after each read."""
_SCALARS = {"string", "number", "boolean", "null"}


def kind(head: bytes, path: Path) -> str | None:
    """`cape`, `cuckoo` or None, by the file's beginning or, where that is silent, its top keys."""
    if head.lstrip()[:1] != b"{" or re.search(rb'^\s*\{\s*"(?:episode_id|step)"', head):
        return None
    if _CAPE.search(head):
        return "cape"
    if _CUCKOO.search(head):
        return "cuckoo"
    keys = _top_keys(path)
    if len(keys & _REPORT_KEYS) < 2 and "behavior" not in keys:
        return None
    return "cape" if keys & _CAPE_KEYS else "cuckoo"


class _Wary:
    """A file that is read in small pieces where it opens more brackets than any report does.

    Small pieces throughout would be slow: the parser starts a long string anew with each piece.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._block = b""

    def read(self, size: int) -> bytes:
        if size <= 0:
            return b""
        block = self._block or self._file.read(size)
        opened = sum(map(block.count, (b"{", b"["))) - sum(map(block.count, (b"}", b"]")))
        piece = 4096 if opened > 1024 else size
        self._block = block[piece:]
        return block[:piece]


def _guard(prefix: str) -> None:
    if len(prefix) > _MAX_PREFIX:
        raise ValueError("the JSON is nested too deeply for a report")


def _top_keys(path: Path) -> set[str]:
    keys: set[str] = set()
    try:
        with open_binary(path) as file:
            for prefix, event, value in ijson.parse(
                _Wary(file), use_float=True, buf_size=_READ_BYTES
            ):
                _guard(prefix)
                if not prefix and event == "map_key":
                    keys.add(value)
    except UNREADABLE:
        return keys  # a damaged report is still one; the reader says what is wrong with it
    return keys


def read(path: Path, *, sandbox_id: str, stage: Stage | None = None) -> Iterator[Item]:
    """The report's events, NoEvidence where it holds no call, dead letters for what is unclear."""
    facts: dict[str, Any] = {}
    counts = CallCounts()
    flows: list[float] = []
    try:
        with open_binary(path) as file:
            _scan(file, counts, facts, flows)
    except UNREADABLE as cause:
        yield damaged(path, cause)
        return
    if counts.untimed:
        reason = f"{counts.untimed} calls have no valid time and were left out"
        yield refuse(path, f"{_PROCESS}.calls.timestamp", reason)
    if not counts.calls:
        yield NoEvidence(path.name, "no process of the report made a recorded call")
        return
    try:
        events = list(_events(path, counts, facts, flows, sandbox_id, stage))
    except TelemetryError as error:
        yield dead_letter(error, path.name, 0, b"")
        return
    yield from events


def _scan(file: IO[bytes], counts: CallCounts, facts: dict[str, Any], flows: list[float]) -> None:
    """One pass over the report's JSON."""
    call: dict[str, Any] = {}
    process: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    call_field, process_field = len(_CALL) + 1, len(_PROCESS) + 1
    for prefix, event, value in ijson.parse(_Wary(file), use_float=True, buf_size=_READ_BYTES):
        _guard(prefix)
        if prefix.startswith(_CALL):
            if event in _SCALARS:
                field = prefix[call_field:]
                if field == "arguments.item.name":
                    call["name"] = value
                elif field == "arguments.item.value":
                    arguments[str(call.get("name"))] = value
                elif field.startswith("arguments."):
                    arguments[field[10:]] = value
                else:
                    call[field] = value
            elif event == "end_map" and prefix == _CALL:
                counts.add(call, arguments)
                call, arguments = {}, {}
        elif prefix.startswith(_PROCESS):
            if event in _SCALARS:
                process[prefix[process_field:]] = value
            elif event == "end_map" and prefix == _PROCESS:
                counts.end_process(process)
                process = {}
        elif prefix in _FACTS:
            if event in _SCALARS and value not in (None, ""):
                facts.setdefault(prefix, value)
        elif prefix in _FLOWS and (seconds := finite(value)) is not None:
            flows.append(seconds)


def _events(
    path: Path,
    counts: CallCounts,
    facts: dict[str, Any],
    flows: list[float],
    sandbox_id: str,
    stage: Stage | None,
) -> Iterator[Item]:
    first, last = min(counts.calls), max(counts.calls)
    # flows are timed from the capture's start, which is close to the first call; those beyond the
    # last call belong to the guest as much as to the artefact
    for seconds in flows:
        if 0 <= seconds * 1000 <= last - first:
            counts.connections[first + round(seconds * 1000)] += 1
    width = WINDOW_S * 1000

    def by_window(times: Counter[int]) -> Counter[int]:
        total: Counter[int] = Counter()
        for at, count in times.items():
            total[int((at - first) // width)] += count
        return total

    signals = {name: by_window(times) for name, times in counts.signals(first, last).items()}
    windows, dropped = _windows(sorted(signals["syscall_count"] | signals["network_connections"]))
    sha256 = facts.get("target.file.sha256")
    sha256 = sha256 if isinstance(sha256, str) and _SHA256.match(sha256) else None
    session = sha256 or stem(path)
    constant = {
        "sandbox_id": sandbox_id,
        "stage": stage or Stage.POSITIVE,
        "episode_id": f"{session}#{first}",
        "session_id": session,
        "artifact_sha256": sha256,
        "window_s": WINDOW_S,
        "process": counts.root(),
        **_labels(facts),
    }
    for step, window in enumerate(windows):
        ended = step == len(windows) - 1 and not dropped and facts.get("info.timeout") is False
        measured = {name: float(of[window]) for name, of in signals.items()}
        flags = {name: measured.pop(name) > 0 for name in counts.FLAGS}
        when = {"timestamp": first + (window + 1) * width, "step": step, "episode_end": ended}
        yield validate_event(constant | measured | flags | when, step)
    if dropped:
        yield refuse(path, _PROCESS, f"the last {dropped} windows with calls exceed {MAX_WINDOWS}")


def _windows(occupied: list[int]) -> tuple[list[int], int]:
    """Numbers of the windows that an episode keeps, and how many occupied ones it drops."""
    kept: list[int] = []
    for index, window in enumerate(occupied):
        if kept:
            idle = range(kept[-1] + 1, window)
            kept.extend(idle[:MAX_IDLE_WINDOWS])
        kept.append(window)
        if len(kept) >= MAX_WINDOWS:
            return kept[:MAX_WINDOWS], len(occupied) - index - 1
    return kept, 0


def _labels(facts: dict[str, Any]) -> dict[str, Any]:
    """Labels by the sandbox's own score; none below the threshold."""
    score = finite(facts.get("malscore", facts.get("info.score")))
    if score is None or not score >= MALICIOUS_SCORE:
        return {}
    names = ("detections.item.family", "detections.item", "detections", "malfamily")
    family = next((facts[name] for name in names if isinstance(facts.get(name), str)), None)
    return {
        "is_malicious": True,
        "severity": min(round(score / 10.0, 4), 1.0),
        "attack_type": None if family is None else family[:128],
    }
