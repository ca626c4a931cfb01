"""Reader of strace logs (`strace -f -ttt`, best with `-yy -s 0`): tumbling telemetry windows.

A log is one episode: the calls of a process tree in order of time go in, one event per window
comes out, as soon as the window is over; what is kept between lines is bounded. CPU and memory come
from the samples of /proc in `<log>.proc.jsonl` (one `ProcSample` a line, written by the recorder);
without that file they are null, which means not measured. Only counts and the program's name leave
this module: no path, no argument and no environment of the traced program.
"""

import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
from msgspec import Meta, Struct

from drl_assets.sources.records import (
    Item,
    NoEvidence,
    Oversized,
    damaged,
    line_blocks,
    open_binary,
    refuse,
    stem,
)
from drl_assets.sources.strace.counters import Tracker
from drl_assets.sources.strace.parser import MAX_LINE_BYTES, Line, parse_line
from drl_assets.sources.strace.window import Window
from drl_core.telemetry.event import DeadLetter, Stage, validate_event

DEFAULT_WINDOW_S = 1.0
MAX_SILENCE_S = 3600.0
"""A line that is further than this from the line before is refused: a broken clock or a forgery."""
_LATEST_S = 253402300799.0 - MAX_SILENCE_S

_ATTACHED = re.compile(rb"strace: Process \d+ attached$")
_SNIFF = re.compile(
    rb"(?:\[pid +\d+\] |\d+ +)?\d{9,12}\.\d{3,9} (?:[a-z_0-9]+\(|<\.\.\. |\+\+\+ |--- )"
)

_Percent = Annotated[float, Meta(ge=0, le=1e6)]


class ProcSample(Struct, frozen=True):
    """The whole process tree in /proc: `t` in epoch seconds, CPU since the sample before."""

    t: Annotated[float, Meta(ge=0, le=_LATEST_S)]
    cpu_percent: _Percent
    rss_mib: Annotated[float, Meta(ge=0, le=1e9)]
    processes: Annotated[int, Meta(ge=0)]


def samples_path(log: Path) -> Path:
    """Where the /proc samples of a log lie."""
    return log.with_name(log.name + ".proc.jsonl")


def sniff(head: bytes, path: Path) -> bool:
    """Whether the first bytes of a file look like `strace -ttt`."""
    lines = [line for line in head.splitlines()[:20] if not line.startswith(b"strace: ")]
    return any(_SNIFF.match(line) for line in lines[:3])


def read(
    path: Path,
    *,
    sandbox_id: str | None = None,
    stage: Stage | None = None,
    window_s: float = DEFAULT_WINDOW_S,
) -> Iterator[Item]:
    """Events of one log (plain or .gz), its refused lines, or `NoEvidence` where it holds no call.

    Args:
        path: the log; samples are read from `<path>.proc.jsonl` where that exists.
        sandbox_id: the sandbox the log came from, "default" if not given.
        stage: which of the two sandboxes, `positive` if not given.
        window_s: length of a window, 0.05 to 3600 seconds.

    Raises:
        ValueError: for a window outside that range.
    """
    if not 0.05 <= window_s <= 3600:
        raise ValueError(f"window_s: {window_s} is outside 0.05 to 3600 seconds")
    name = stem(path)
    fields: dict[str, Any] = {"window_s": window_s, "session_id": name}
    fields |= {"sandbox_id": sandbox_id} if sandbox_id else {}
    fields |= {"stage": stage} if stage else {}
    with ExitStack() as stack:
        samples: IO[bytes] | None = None
        if samples_path(path).exists():
            samples = stack.enter_context(samples_path(path).open("rb"))
        episode = _Episode(name, fields, _Samples(samples, samples_path(path)))
        try:
            log = stack.enter_context(open_binary(path))
            for number, raw, whole in _lines(log):
                yield from _take(episode, path, number, raw, whole)
        except (OSError, EOFError, zlib.error) as cause:
            yield damaged(path, cause)
        yield from episode.finish(path)


def _take(episode: "_Episode", path: Path, number: int, raw: bytes, whole: bool) -> Iterator[Item]:
    # a refused line may hold paths and data of the traced program: only its beginning is kept
    payload = raw[:48]
    if len(raw) > MAX_LINE_BYTES:
        yield refuse(path, "$", f"longer than {MAX_LINE_BYTES} bytes", number, payload)
        return
    line = parse_line(raw.decode("utf-8", "backslashreplace"))
    if line is None:
        reason = "is not a line of strace -ttt" if whole else "the log ends inside this line"
        yield refuse(path, "$", reason, number, payload)
    elif (problem := episode.implausible(line.time)) is not None:
        yield refuse(path, "timestamp", problem, number, payload)
    else:
        yield from episode.add(line)


def _lines(log: IO[bytes]) -> Iterator[tuple[int, bytes, bool]]:
    """Numbered lines without strace's own messages; False for a last line without a line end.

    To a terminal, strace writes `strace: Process N attached` into the middle of the clone that
    started N: the two halves are one line here.
    """
    number, held = -1, b""
    for block in line_blocks(log):
        if isinstance(block, Oversized):
            number, held = number + 1, b""
            yield number, block.head.ljust(MAX_LINE_BYTES + 1), True
            continue
        lines = block.split(b"\n")
        last = lines.pop()
        for raw, whole in [*((one, True) for one in lines), *([(last, False)] if last else [])]:
            number += 1
            text = held + raw.removesuffix(b"\r")
            held = b""
            if attached := _ATTACHED.search(text):
                held = text[: attached.start()][:MAX_LINE_BYTES]
            elif text and not text.startswith(b"strace: "):
                yield number, text, whole


class _Episode:
    """The window in progress and the state of the traced processes."""

    def __init__(self, name: str, fields: dict[str, Any], samples: "_Samples") -> None:
        self._name = name
        self._fields = fields
        self._window_s: float = fields["window_s"]
        self._samples = samples
        self._tracker = Tracker()
        self._start: float | None = None
        self._now = 0.0
        self._step = 0
        self._window = Window()
        self._calls = 0.0

    def implausible(self, time: float) -> str | None:
        """Why a line's time cannot be true; None where it can."""
        if time > _LATEST_S:
            return f"{time} is after the year 9999"
        if self._start is not None and abs(time - self._now) > MAX_SILENCE_S:
            return f"{time} is more than {MAX_SILENCE_S:.0f} s away from the line before"
        return None

    def add(self, line: Line) -> Iterator[Item]:
        """Take one line; yields the windows that are over by its time."""
        if self._start is None:
            self._start = self._now = line.time
            self._fields["episode_id"] = f"{self._name}-{round(line.time * 1000)}"
        self._now = max(self._now, line.time)
        while self._now >= self._start + (self._step + 1) * self._window_s:
            yield from self._close(self._start, ended=False)
        self._tracker.observe(line, self._window)

    def finish(self, path: Path) -> Iterator[Item]:
        """The last window, or `NoEvidence`."""
        if self._start is None or not self._calls + self._window.syscalls:
            yield NoEvidence(path.name, "the log holds no system call")
            return
        yield from self._close(self._start, ended=self._tracker.ended)

    def _close(self, start: float, *, ended: bool) -> Iterator[Item]:
        end = start + (self._step + 1) * self._window_s
        cpu, memory, letters = self._samples.until(end)
        yield from letters
        fields = self._window.fields() | self._fields
        fields |= {"step": self._step, "timestamp": end * 1000, "episode_end": ended}
        fields |= {"cpu_usage": cpu, "memory_usage": memory}
        if self._tracker.program and self._step == 0:
            fields["process"] = {"name": self._tracker.program}
        yield validate_event(fields)
        self._calls += self._window.syscalls
        self._step += 1
        self._window = Window()


class _Samples:
    """The /proc samples in order of time, read no further than asked for."""

    _decoder = msgspec.json.Decoder(ProcSample)

    def __init__(self, lines: Iterable[bytes] | None, path: Path) -> None:
        self._lines = enumerate(lines if lines is not None else ())
        self._path = path
        self._ahead: ProcSample | None = None

    def until(self, end: float) -> tuple[float | None, float | None, list[DeadLetter]]:
        """Mean CPU percent, largest resident MiB (None without a sample), refused samples."""
        cpu: list[float] = []
        memory: list[float] = []
        letters: list[DeadLetter] = []
        while (sample := self._ahead or self._next(letters)) is not None:
            self._ahead = sample
            if sample.t >= end:
                break
            cpu.append(sample.cpu_percent)
            memory.append(sample.rss_mib)
            self._ahead = None
        mean = sum(cpu) / len(cpu) if cpu else None
        return mean, max(memory, default=None), letters

    def _next(self, letters: list[DeadLetter]) -> ProcSample | None:
        for number, line in self._lines:
            try:
                return self._decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
                letters.append(refuse(self._path, "$", str(cause), number, line))
        return None
