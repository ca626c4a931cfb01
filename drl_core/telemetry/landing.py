"""The landing zone: durable, append-only segments of telemetry, sealed into batches exactly once.

Writers (the service, `drl import`) append **segments**: whole files of JSON lines, written under a
temporary name, fsynced, renamed, and the folder fsynced. Only then is an event acknowledged.
Sealing (the first step of an ingest run) turns all segments that are not yet in a batch into one
**batch**: a manifest that lists them. Its key, the partition key, is a rising number and the hash
of the oldest segment's name: it can be computed before sealing (`pending`, which changes nothing),
it stays the same while more lands, and it is never used again, whatever lands. A segment is in
exactly one manifest, whoever is killed when: the manifest is written atomically first, then its
segments are moved beside it, and a move that was interrupted is finished by the next sealer or
reader.

    <root>/segments/<time>-<random>.jsonl      landed, in no batch yet
    <root>/batches/<key>/manifest.json + segments
    <root>/dead_letters/<date>.jsonl           invalid records with their reasons
"""

import contextlib
import datetime as dt
import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from filelock import FileLock

from drl_core.files import sync_folder, write_atomically
from drl_core.telemetry.event import (
    DeadLetter,
    Event,
    TelemetryError,
    dead_letter,
    encode_event,
    parse_lines,
    sanitize,
)


class LandingError(OSError):
    """Telemetry could not be made durable; nothing was acknowledged, nothing partial is left."""


class Segment(msgspec.Struct, frozen=True):
    """One landed file of events."""

    name: str
    events: int
    sha256: str


class PendingBatch(msgspec.Struct, frozen=True):
    """What sealing would make a batch of now: its key and the names of its segments."""

    key: str
    segments: list[str]

    @property
    def events(self) -> int:
        return sum(map(_event_count, self.segments))


class SealedBatch(msgspec.Struct, frozen=True):
    """A sealed set of segments; `key` is the partition key, `content_hash` that of the events."""

    key: str
    content_hash: str
    sealed_at: str
    segments: list[Segment]

    @property
    def events(self) -> int:
        return sum(segment.events for segment in self.segments)


class LandingZone:
    """A folder of segments, batches and dead letters."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._segments = root / "segments"
        self._batches = root / "batches"
        self._dead = root / "dead_letters"
        for folder in (self._segments, self._batches, self._dead):
            folder.mkdir(parents=True, exist_ok=True)

    def land(self, events: Iterable[Event]) -> Segment:
        """Make events durable as one segment; they may be acknowledged when this returns.

        Raises:
            LandingError: the disk failed; nothing was kept, the sender has to retry.
            ValueError: for no events.
        """
        lines = [encode_event(sanitize(event)) for event in events]
        if not lines:
            raise ValueError("a segment needs at least one event")
        content = b"\n".join(lines) + b"\n"
        segment = Segment(
            # the count travels in the name, so that sealing needs no reading
            name=f"{time.time_ns():020d}-{secrets.token_hex(4)}-{len(lines)}.jsonl",
            events=len(lines),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        try:
            write_atomically(self._segments / segment.name, content)
        except OSError as cause:
            raise LandingError(
                cause.errno, f"telemetry not landed, send it again: {cause.strerror}"
            ) from cause
        return segment

    def write_dead_letters(self, letters: Iterable[DeadLetter]) -> None:
        """Append invalid records with their reasons to today's dead-letter file.

        Raises:
            LandingError: the disk failed.
        """
        lines = b"".join(msgspec.json.encode(letter) + b"\n" for letter in letters)
        if not lines:
            return
        today = dt.datetime.now(dt.UTC).date().isoformat()
        try:
            with (self._dead / f"{today}.jsonl").open("a+b") as file:
                if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                    lines = b"\n" + lines  # a killed writer or a full disk truncated the last line
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as cause:
            raise LandingError(cause.errno, f"dead letters not kept: {cause.strerror}") from cause

    def dead_letters(self) -> list[DeadLetter]:
        """All dead letters, oldest first; of a truncated one, what is left of it."""
        return [
            _dead_letter(line, path.name, number)
            for path in sorted(self._dead.glob("*.jsonl"))
            for number, line in enumerate(path.read_bytes().splitlines())
        ]

    def waiting(self) -> list[str]:
        """Names of landed segments that are in no batch yet, oldest first. Changes nothing."""
        landed = {path.name for path in self._segments.glob("[!.]*.jsonl")}
        sealed = self.keys()
        if landed and sealed:  # a sealer may have been killed before it moved all it claimed
            landed -= {segment.name for segment in self.batch(sealed[-1]).segments}
        return sorted(landed)

    def pending(self, max_segments: int = 10_000) -> PendingBatch | None:
        """The batch that sealing would make now; None where nothing waits. Changes nothing."""
        names = self.waiting()[:max_segments]
        if not names:
            return None
        oldest = hashlib.sha256(names[0].encode()).hexdigest()
        return PendingBatch(f"{self._next_number():08d}-{oldest[:12]}", names)

    def seal(self, key: str | None = None, max_segments: int = 10_000) -> SealedBatch | None:
        """Turn waiting segments into one batch; idempotent for a given key.

        Safe to call from several processes, which take turns by a lock file.

        Args:
            key: of a pending batch, or of a batch that is sealed already, which is then given back
                as it is: a run that is started again works on the same segments. By default the
                pending batch's.
            max_segments: the most that one batch takes.

        Returns:
            The batch; None where nothing waits and no key was given.

        Raises:
            KeyError: no batch of this key is sealed, and none can be: its number is taken, or
                nothing waits.
            LandingError: the disk failed; the segments are still waiting.
        """
        with FileLock(self.root / ".seal.lock"):
            self._finish_moves()
            if key is not None and key in self.keys():
                return self.batch(key)
            pending = self.pending(max_segments)
            if key is not None and (pending is None or _number(key) != _number(pending.key)):
                raise KeyError(f"no batch {key} in the landing zone {self.root}, sealed or pending")
            return None if pending is None else self._seal(key or pending.key, pending.segments)

    def _seal(self, key: str, names: list[str]) -> SealedBatch:
        segments = [self._describe(self._segments / name) for name in names]
        batch = SealedBatch(
            key=key,
            content_hash=hashlib.sha256("".join(s.sha256 for s in segments).encode()).hexdigest(),
            sealed_at=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            segments=segments,
        )
        folder = self._batches / key
        try:
            folder.mkdir(exist_ok=True)  # a sealer may have been killed before its manifest
            write_atomically(folder / "manifest.json", msgspec.json.encode(batch))
            sync_folder(self._batches)
        except OSError as cause:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
            raise LandingError(cause.errno, f"batch not sealed: {cause.strerror}") from cause
        self._finish_moves()
        return batch

    def keys(self) -> list[str]:
        """Keys of all sealed batches, oldest first."""
        return sorted(path.parent.name for path in self._batches.glob("*/manifest.json"))

    def batch(self, key: str) -> SealedBatch:
        """The manifest of one batch.

        Raises:
            KeyError: no such batch.
        """
        try:
            return msgspec.json.decode(
                (self._batches / key / "manifest.json").read_bytes(), type=SealedBatch
            )
        except FileNotFoundError:
            raise KeyError(f"no batch {key} in the landing zone {self.root}") from None

    def read(self, key: str) -> Iterator[list[Event]]:
        """Events of a batch, one segment at a time, in the order of landing.

        Raises:
            KeyError: no such batch.
            LandingError: a segment is missing or was changed after landing.
        """
        self._finish_moves()
        for segment in self.batch(key).segments:
            try:
                content = (self._batches / key / segment.name).read_bytes()
            except OSError as cause:
                raise LandingError(
                    cause.errno, f"segment {segment.name} of batch {key} cannot be read"
                ) from cause
            if hashlib.sha256(content).hexdigest() != segment.sha256:
                raise LandingError(0, f"segment {segment.name} of batch {key} was changed")
            events, dead = parse_lines(content, segment.name)
            if dead:
                raise LandingError(0, f"segment {segment.name} holds an invalid event: {dead[0]}")
            yield events

    def discard(self, key: str) -> None:
        """Delete a batch's segments once they are stored as Parquet; the manifest is kept."""
        for segment in self.batch(key).segments:
            (self._batches / key / segment.name).unlink(missing_ok=True)

    def _describe(self, path: Path) -> Segment:
        return Segment(
            name=path.name,
            events=_event_count(path.name),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )

    def _next_number(self) -> int:
        sealed = self.keys()
        return 1 + _number(sealed[-1]) if sealed else 1

    def _finish_moves(self) -> None:
        """Finish the moves of the newest batch's segments, where they were interrupted."""
        manifests = sorted(self._batches.glob("*/manifest.json"))
        if not manifests:
            return
        folder = manifests[-1].parent
        for segment in self.batch(folder.name).segments:
            with contextlib.suppress(FileNotFoundError):  # moved already
                (self._segments / segment.name).rename(folder / segment.name)


def _number(key: str) -> int:
    return int(key.split("-", 1)[0])


def _event_count(name: str) -> int:
    return int(name.removesuffix(".jsonl").rsplit("-", 1)[1])


def _dead_letter(line: bytes, source: str, record: int) -> DeadLetter:
    try:
        return msgspec.json.decode(line, type=DeadLetter)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        cut = TelemetryError("$", "this dead letter was truncated while it was written")
        return dead_letter(cut, source, record, line)
