"""Recorder: runs a program under strace and writes its behaviour as one telemetry episode.

A command line goes in, a file of JSON lines (one event a window) comes out. strace writes every
system call of the process tree to a temporary log, a thread samples CPU and memory of the tree
from /proc beside it, and `drl_assets.sources.strace.reader` turns both into events. The program
really runs, with the rights of the caller: record unknown files only inside a sandbox.
"""

import contextlib
import gzip
import hashlib
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from drl_assets.sources.strace import reader
from drl_core.files import write_atomically
from drl_core.telemetry.event import DeadLetter, Event, Stage, encode_lines, validate_event

DEFAULT_WINDOW_S = 0.5
_SAMPLES_PER_WINDOW = 3
_MIB = 1 << 20


class RecordingError(RuntimeError):
    """The program could not be recorded; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """What is known of the recorded program; travels as the label of each event."""

    is_malicious: bool
    severity: float | None = None
    attack_type: str | None = None


@dataclass(frozen=True)
class RecordResult:
    """What was recorded. `ended` is False where the time limit stopped the program."""

    path: Path
    episode_id: str
    events: int
    seconds: float
    ended: bool
    exit_status: int
    refused: tuple[DeadLetter, ...] = ()


def record(
    command: Sequence[str],
    out: Path,
    *,
    window_s: float = DEFAULT_WINDOW_S,
    sandbox_id: str = "recorder",
    stage: Stage = Stage.POSITIVE,
    label: Label | None = None,
    episode_id: str | None = None,
    session_id: str | None = None,
    artifact_sha256: str | None = None,
    timeout_s: float | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    quiet: bool = False,
) -> RecordResult:
    """Run a program to its end, or to the time limit, and write its telemetry.

    Args:
        command: program and arguments.
        out: `.jsonl`, or `.jsonl.gz` to compress; replaced in one step when the program has ended.
        window_s: length of a window, 0.25 to 1 second.
        sandbox_id: written into each event.
        stage: `positive` (flagged by a detector) or `negative` (passed).
        label: known label, or None for an unlabelled episode.
        episode_id: unique in the sandbox; by default the program's name and the time of start.
        session_id: evaluation never splits a session between training and test; by default the
            episode's id.
        artifact_sha256: of the recorded file; by default that of the program.
        timeout_s: after so many seconds the whole process tree is killed, and the last event's
            `episode_end` stays False: the record ended, not the program. None waits.
        cwd, env: working directory and environment of the program; those of the caller by default.
        quiet: discard what the program prints, and give it no input.

    Raises:
        RecordingError: strace is missing or may not trace, the program is not found, or it left no
            system call.
        ValueError: `window_s` or the suffix of `out` is not allowed.
        TelemetryError: `sandbox_id`, an id, the hash or the label is not valid in an event.
        OSError: `out` cannot be written.
    """
    if not 0.25 <= window_s <= 1:
        raise ValueError(f"window_s: {window_s} is outside 0.25 to 1 second")
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"out: {out.name} must end in .jsonl or .jsonl.gz")
    program = _program(command, cwd, env)
    started = time.time()
    identity = episode_id or f"{program.name}-{round(started * 1000)}"
    fields = {
        "episode_id": identity,
        "session_id": session_id or identity,
        "artifact_sha256": artifact_sha256 or _sha256(program),
        "is_malicious": label.is_malicious if label else None,
        "severity": label.severity if label else None,
        "attack_type": label.attack_type if label else None,
    }
    validate_event({"step": 0, "sandbox_id": sandbox_id, **fields})  # before anything runs
    with tempfile.TemporaryDirectory(prefix="drl-record-") as folder:
        log = Path(folder) / "recording.strace"
        ended, status = _trace(command, log, window_s, timeout_s, cwd, env, quiet)
        seconds = time.time() - started
        items = list(reader.read(log, sandbox_id=sandbox_id, stage=stage, window_s=window_s))
    events = [item for item in items if isinstance(item, Event)]
    if not events:
        raise RecordingError(
            f"{command[0]} left no system call, strace ended with status {status}; in a container,"
            " tracing must be allowed (--cap-add SYS_PTRACE)"
        )
    events = [
        msgspec.structs.replace(event, **fields, episode_end=event.episode_end and ended)
        for event in events
    ]
    write_events(out, events)
    refused = tuple(item for item in items if isinstance(item, DeadLetter))
    return RecordResult(out, identity, len(events), seconds, ended, status, refused)


def write_events(out: Path, events: Sequence[Event]) -> None:
    """Write events as JSON lines, compressed where the name ends in .gz, in one step.

    Raises:
        OSError: the file cannot be written; nothing half-written stays.
    """
    lines = encode_lines(events)
    write_atomically(out, gzip.compress(lines, mtime=0) if out.suffix == ".gz" else lines)


def _program(command: Sequence[str], cwd: Path | None, env: Mapping[str, str] | None) -> Path:
    if not command:
        raise RecordingError("no command given: say which program to record")
    if shutil.which("strace") is None:
        raise RecordingError("strace is not installed: run `apt-get install strace`")
    name = command[0]
    if "/" in name and cwd is not None and not Path(name).is_absolute():
        name = str(cwd / name)
    found = shutil.which(name, path=env.get("PATH") if env is not None else None)
    if found is None:
        raise RecordingError(f"program not found or not executable: {command[0]}")
    return Path(found)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _trace(
    command: Sequence[str],
    log: Path,
    window_s: float,
    timeout_s: float | None,
    cwd: Path | None,
    env: Mapping[str, str] | None,
    quiet: bool,
) -> tuple[bool, int]:
    """Run the command under strace; (ended by itself, exit status)."""
    sink = subprocess.DEVNULL if quiet else None
    # -s 0: no data of the program in the log; signals of children are of no use here
    options = ["strace", "-f", "-ttt", "-yy", "-s", "0", "-o", str(log), "--"]
    tracer = subprocess.Popen(
        [*options, *command], cwd=cwd, env=env, stdin=sink, stdout=sink, stderr=sink
    )
    stop = threading.Event()
    sampler = threading.Thread(
        target=_sample, args=(tracer.pid, reader.samples_path(log), window_s, stop), daemon=True
    )
    sampler.start()
    try:
        return True, tracer.wait(timeout_s)
    except subprocess.TimeoutExpired:
        _kill_tracees(tracer.pid)
        return False, tracer.wait()
    finally:  # also where the caller is interrupted: nothing is left running
        _kill_tracees(tracer.pid)
        tracer.wait()
        stop.set()
        sampler.join()


def _kill_tracees(tracer: int) -> None:
    """Kill every process that strace traces, also those that left the tree; strace then ends."""
    while found := list(_tracees(tracer)):
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.02)


def _tracees(tracer: int) -> Iterator[psutil.Process]:
    mark = f"TracerPid:\t{tracer}\n"
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if mark in Path(f"/proc/{process.pid}/status").read_text():
                yield process


def _sample(tracer: int, path: Path, window_s: float, stop: threading.Event) -> None:
    """Write CPU and resident memory of the traced tree, a few times a window, until `stop`."""
    before_s, before = time.monotonic(), 0.0
    with path.open("wb") as file:
        while not stop.wait(window_s / _SAMPLES_PER_WINDOW):
            cpu_s, resident, processes = _tree(tracer)
            now_s = time.monotonic()
            sample = reader.ProcSample(
                t=time.time(),
                # the time of a child that nobody waited for leaves the sum: never below zero
                cpu_percent=max(0.0, 100 * (cpu_s - before) / (now_s - before_s)),
                rss_mib=resident / _MIB,
                processes=processes,
            )
            before_s, before = now_s, cpu_s
            file.write(msgspec.json.encode(sample) + b"\n")


def _tree(tracer: int) -> tuple[float, int, int]:
    """CPU seconds (ended and awaited children included), resident bytes, number of processes."""
    cpu_s, resident, processes = 0.0, 0, 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(tracer).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                with process.oneshot():
                    cpu_s += sum(process.cpu_times()[:4])
                    resident += process.memory_info().rss
                processes += 1
    return cpu_s, resident, processes
