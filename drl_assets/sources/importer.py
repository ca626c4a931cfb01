"""Importer: recorded telemetry into the landing zone, or straight into memory.

Paths come in; events leave as durable segments of the landing zone, refused records as its dead
letters. `read_events` is the same without a landing zone, for training and evaluating from files.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from drl_assets import sources
from drl_assets.sources import Label, NoEvidence
from drl_core.telemetry.event import DeadLetter, Event, Stage
from drl_core.telemetry.landing import LandingZone

SEGMENT_EVENTS = 50_000
"""Events a segment holds at most; they are durable, and counted, when it is landed."""

Progress = Callable[[int, int], None]
"""Called with (files done, files in all) after each file."""


class ImportResult(msgspec.Struct, kw_only=True):
    """What an import landed, refused, and found without behaviour (by name)."""

    files: int = 0
    events: int = 0
    episodes: int = 0
    dead_letters: int = 0
    no_evidence: list[str] = []
    segments: int = 0


def import_telemetry(
    paths: Iterable[Path],
    zone: LandingZone,
    *,
    format: str = "auto",
    sandbox_id: str | None = None,
    stage: Stage | None = None,
    label: Label | None = None,
    progress: Progress | None = None,
) -> ImportResult:
    """Land the telemetry of files and folders; bad records become dead letters and stop nothing.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: unknown format.
        LandingError: the disk refused; what was counted before is durable.
    """
    files = sources.find(paths)
    result = ImportResult()
    episodes: set[tuple[str, str]] = set()
    waiting: list[Event] = []
    dead: list[DeadLetter] = []

    def flush() -> None:
        if waiting:
            zone.land(waiting)
            result.events += len(waiting)
            result.segments += 1
            waiting.clear()
        zone.write_dead_letters(dead)
        result.dead_letters += len(dead)
        dead.clear()

    for path in files:
        items = sources.read(path, format=format, sandbox_id=sandbox_id, stage=stage, label=label)
        for item in items:
            if isinstance(item, Event):
                waiting.append(item)
                episodes.add(item.key[:2])
            elif isinstance(item, NoEvidence):
                result.no_evidence.append(item.source)
            else:
                dead.append(item)
            if len(waiting) >= SEGMENT_EVENTS or len(dead) >= SEGMENT_EVENTS:
                flush()
        result.files += 1
        if progress is not None:
            progress(result.files, len(files))
    flush()
    result.episodes = len(episodes)
    return result


def read_events(
    paths: Iterable[Path],
    *,
    format: str = "auto",
    sandbox_id: str | None = None,
    stage: Stage | None = None,
    label: Label | None = None,
    progress: Progress | None = None,
) -> tuple[Event, ...]:
    """The events of files and folders, without landing them; what is no event is left out.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: unknown format, or no event in any of the files.
    """
    files = sources.find(paths)
    events: list[Event] = []
    refused: DeadLetter | None = None
    for done, path in enumerate(files, 1):
        items = sources.read(path, format=format, sandbox_id=sandbox_id, stage=stage, label=label)
        for item in items:
            if isinstance(item, Event):
                events.append(item)
            elif isinstance(item, DeadLetter):
                refused = refused or item
        if progress is not None:
            progress(done, len(files))
    if not events:
        why = f"; refused: {refused.source}, {refused.reason}" if refused else ""
        raise ValueError(f"telemetry: no event in {len(files)} file(s){why}")
    return tuple(events)
