"""The input of the benchmark, and one large batch through the three tables of the asset graph."""

import json
import random
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from drl_assets.tables import transforms as tables
from drl_core.telemetry.event import parse_lines

WINDOWS_PER_EPISODE = 50
SEGMENT_EVENTS = 50_000


def lines(events: int, first: int = 0) -> bytes:
    """Valid events with every field that sandboxes send, as JSON lines."""
    chance = random.Random(first)  # one seed, one input
    records = []
    for number in range(first, first + events):
        episode, step = divmod(number, WINDOWS_PER_EPISODE)
        malicious = episode % 3 == 0
        records.append(
            {
                "schema_version": 1,
                "sandbox_id": f"sandbox-{episode % 16}",
                "stage": "positive" if episode % 2 else "negative",
                "episode_id": f"episode-{episode}",
                "artifact_sha256": f"{episode:064x}",
                "step": step,
                "timestamp": f"2026-01-01T00:{step:02d}:{number % 60:02d}Z",
                "window_s": 1.0,
                "syscall_count": chance.randrange(10_000),
                "file_read_count": chance.randrange(200),
                "file_write_count": chance.randrange(100),
                "network_connections": chance.randrange(5),
                "bytes_sent": chance.randrange(100_000),
                "bytes_received": chance.randrange(100_000),
                "child_processes": chance.randrange(3),
                "cpu_usage": round(chance.random() * 100, 2),
                "memory_usage": round(chance.random() * 1000, 2),
                "registry_modification": chance.random() < 0.01,
                "privilege_escalation_attempt": chance.random() < 0.01,
                "code_injection_detected": chance.random() < 0.01,
                "is_malicious": malicious,
                "severity": 0.8 if malicious else 0.0,
                "attack_type": "ransomware" if malicious else None,
            }
        )
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def pipeline(events: int, answer: Any) -> None:
    """Take `events` events through the three tables; puts seconds per stage and peak memory."""
    seconds: dict[str, float] = {}
    begin = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal begin
        seconds[stage] = time.perf_counter() - begin
        begin = time.perf_counter()

    folder = Path(tempfile.mkdtemp())
    starts = range(0, events, SEGMENT_EVENTS)
    for start in starts:
        (folder / str(start)).write_bytes(lines(min(SEGMENT_EVENTS, events - start), start))
    lap("(making the input)")
    segments = (parse_lines((folder / str(start)).read_bytes())[0] for start in starts)
    frame = tables.telemetry_frame(segments).frame
    lap("JSON lines -> telemetry")
    states = tables.state_frame(frame).frame
    lap("telemetry -> states")
    experiences = tables.experience_frame(frame, states)
    lap("states -> experiences")
    assert len(experiences) == events
    shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    answer.put((seconds, peak))
