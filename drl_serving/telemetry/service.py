"""Telemetry ingestion: request bodies in, durable segments and dead letters out.

Concurrent callers share a segment and its fsyncs (group commit). A stream is landed part by part:
the next part is read once the one before it is on disk, so back-pressure reaches a fast sender
through TCP and nothing piles up here.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from drl_core.telemetry.event import (
    MAX_RECORD_BYTES,
    DeadLetter,
    Event,
    TelemetryError,
    dead_letter,
    parse_event,
    parse_lines,
)
from drl_core.telemetry.landing import LandingError, LandingZone
from drl_serving.http import request_body
from drl_serving.storage.group_commit import GroupCommit
from drl_serving.telemetry.schemas import AcceptedTelemetry, RefusedRecord

MAX_REFUSALS = 100
PART_BYTES = 256 << 10
"""Of a stream, landed together."""
GATHER_S = 0.01
"""How long callers wait for others, to share a segment: it bounds segments to 100 a second."""
_SOURCE = "POST /v1/telemetry"


class TelemetryService:
    """Lands events. The folder is made on first use, so that decisions do not depend on it.

    Args:
        root: the landing zone.
        limits: records of one body at most.
        buffer: events that may wait to be durable; above it callers get `BufferFull`.
    """

    def __init__(self, root: Path, limits: request_body.Limits, buffer: int) -> None:
        self._root = root
        self._limits = limits
        self._writer = GroupCommit[Event](
            self._land, capacity=buffer, max_group=buffer, linger_s=GATHER_S, name="landing"
        )

    @property
    def waiting(self) -> int:
        """Events that were received and are not durable yet."""
        return self._writer.depth

    async def close(self) -> None:
        """Land what waits."""
        await self._writer.close()

    async def ingest(self, body: bytes, kind: str) -> AcceptedTelemetry:
        """Validate a body's records and make the good ones durable.

        Args:
            body: of that kind.
            kind: content type: JSON (one event or a list), JSON lines, or protocol buffers.

        Raises:
            BufferFull: too many events wait; nothing was taken.
            LandingError: the disk refused; nothing was acknowledged.
            Problem: 413 for too many records.
            TelemetryError: the body is empty.
        """
        small = len(body) < PART_BYTES
        parsed = (
            self._parse(body, kind) if small else await asyncio.to_thread(self._parse, body, kind)
        )
        if not any(parsed):
            raise TelemetryError("$", "no event was sent, at least one is expected")
        return await self._keep(*parsed)

    async def stream(self, chunks: AsyncIterator[bytes], pause_s: float) -> AcceptedTelemetry:
        """Land JSON lines as they come.

        Args:
            chunks: of bytes, cut anywhere.
            pause_s: how long the sender may say nothing.

        Raises:
            BufferFull, LandingError: what came before is durable; the sender has to send again.
            TelemetryError: nothing was sent.
            TimeoutError: the sender said nothing for too long.
        """
        accepted, refused, line = 0, 0, 0
        refusals: list[RefusedRecord] = []
        async for part in _parts(chunks, pause_s):
            events, dead = parse_lines(part, _SOURCE, line)
            kept = await self._keep(events, dead)
            line += part.count(b"\n")
            accepted, refused = accepted + kept.accepted, refused + kept.refused
            refusals += kept.refusals[: MAX_REFUSALS - len(refusals)]
        if not accepted and not refused:
            raise TelemetryError("$", "no event was sent, at least one is expected")
        return AcceptedTelemetry(accepted=accepted, refused=refused, refusals=refusals)

    def writable(self) -> bool:
        """Whether a file can be written into the landing zone now."""
        try:
            self._zone()
            with tempfile.TemporaryFile(dir=self._root) as probe:  # has no name, leaves nothing
                probe.write(b"1")
                probe.flush()
        except OSError:
            return False
        return True

    async def _keep(self, events: list[Event], dead: list[DeadLetter]) -> AcceptedTelemetry:
        if dead:  # first: a failure here is answered before anything is landed
            await asyncio.to_thread(self._bury, dead)
        await self._writer.submit(events)
        return AcceptedTelemetry(
            accepted=len(events),
            refused=len(dead),
            refusals=[RefusedRecord(d.record, d.field, d.reason) for d in dead[:MAX_REFUSALS]],
        )

    def _land(self, events: list[Event]) -> None:
        self._zone().land(events)

    def _bury(self, letters: list[DeadLetter]) -> None:
        self._zone().write_dead_letters(letters)

    def _zone(self) -> LandingZone:
        try:
            return LandingZone(self._root)
        except OSError as cause:
            raise LandingError(cause.errno, f"no landing zone: {cause.strerror}") from cause

    def _parse(self, body: bytes, kind: str) -> tuple[list[Event], list[DeadLetter]]:
        if kind == request_body.PROTOBUF:
            return self._parse_protobuf(body)
        if kind in request_body.JSON_LINES:
            request_body.limit(body.count(b"\n"), self._limits.max_batch)
            return parse_lines(body, _SOURCE)
        try:
            records, _ = request_body.split(body)
        except TelemetryError as error:
            if not body.strip():
                raise
            return [], [dead_letter(error, _SOURCE, 0, body)]
        request_body.limit(len(records), self._limits.max_batch)
        events: list[Event] = []
        dead: list[DeadLetter] = []
        for number, raw in enumerate(records):
            try:
                events.append(parse_event(raw, number))
            except TelemetryError as error:
                dead.append(dead_letter(error, _SOURCE, number, raw))
        return events, dead

    def _parse_protobuf(self, body: bytes) -> tuple[list[Event], list[DeadLetter]]:
        from drl_core.telemetry import protobuf  # takes memory: only where it is used

        try:
            found = protobuf.decode(body)
        except TelemetryError as error:
            return [], [dead_letter(error, _SOURCE, 0, body)]
        request_body.limit(len(found), self._limits.max_batch)
        errors = [one for one in found if isinstance(one, TelemetryError)]
        dead = [dead_letter(one, _SOURCE, one.record or 0, body) for one in errors]
        return [one for one in found if isinstance(one, Event)], dead


async def _parts(chunks: AsyncIterator[bytes], pause_s: float) -> AsyncIterator[bytes]:
    """Whole lines: as many as fill a part, or what came before the sender paused."""
    waiting = bytearray()
    async for chunk in _chunks(chunks, pause_s):
        waiting += chunk
        if chunk and len(waiting) < PART_BYTES:
            continue
        end = waiting.rfind(b"\n") + 1
        if end:
            yield bytes(waiting[:end])
            del waiting[:end]
        if len(waiting) > MAX_RECORD_BYTES:
            raise TelemetryError(
                "$", f"a line of more than {MAX_RECORD_BYTES} bytes; what came before it is landed"
            )
    if waiting:
        yield bytes(waiting)


async def _chunks(chunks: AsyncIterator[bytes], pause_s: float) -> AsyncIterator[bytes]:
    """The chunks, and an empty one wherever none came for a moment."""

    async def take() -> bytes | None:
        return await anext(chunks, None)

    while True:
        taking = asyncio.create_task(take())
        try:
            await asyncio.wait({taking}, timeout=GATHER_S)
            if not taking.done():
                yield b""
                await asyncio.wait({taking}, timeout=pause_s)
            if not taking.done():
                raise TimeoutError
            chunk = taking.result()
        finally:
            taking.cancel()
        if chunk is None:
            return
        if chunk:
            yield chunk
