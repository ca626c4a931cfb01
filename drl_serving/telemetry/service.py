"""Bodies of telemetry in, durable segments and dead letters out. Runs in a thread: it fsyncs."""

import tempfile
from pathlib import Path

from drl_core.landing import LandingError, LandingZone
from drl_core.telemetry import (
    DeadLetter,
    Event,
    TelemetryError,
    dead_letter,
    parse,
    parse_lines,
)
from drl_serving import bodies
from drl_serving.telemetry.schemas import Accepted, Refused

MAX_REFUSALS = 100
_SOURCE = "POST /v1/telemetry"


class TelemetryService:
    """Lands events. The folder is made on first use, so that decisions do not depend on it."""

    def __init__(self, root: Path, max_records: int) -> None:
        self._root = root
        self.max_records = max_records
        """Records of one body at most; may be changed while running."""

    def ingest(self, body: bytes, is_lines: bool) -> Accepted:
        """Validate a body's records and make the good ones durable.

        Args:
            body: JSON lines, else one event or a list of events.
            is_lines: the body is JSON lines.

        Raises:
            LandingError: the disk refused; nothing was acknowledged.
            Problem: 413 for too many records.
            TelemetryError: the body is empty.
        """
        events, dead = self._parse(body, is_lines)
        if not events and not dead:
            raise TelemetryError("$", "no event was sent, at least one is expected")
        zone = self._zone()
        zone.bury(dead)  # first: a failure here is answered before anything is landed
        if events:
            zone.land(events)
        return Accepted(
            accepted=len(events),
            refused=len(dead),
            refusals=[Refused(d.record, d.field, d.reason) for d in dead[:MAX_REFUSALS]],
        )

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

    def _zone(self) -> LandingZone:
        try:
            return LandingZone(self._root)
        except OSError as cause:
            raise LandingError(cause.errno, f"no landing zone: {cause.strerror}") from cause

    def _parse(self, body: bytes, is_lines: bool) -> tuple[list[Event], list[DeadLetter]]:
        if is_lines:
            bodies.limit(body.count(b"\n"), self.max_records)
            return parse_lines(body, _SOURCE)
        try:
            records, _ = bodies.split(body)
        except TelemetryError as error:
            if not body.strip():
                raise
            return [], [dead_letter(error, _SOURCE, 0, body)]
        bodies.limit(len(records), self.max_records)
        events: list[Event] = []
        dead: list[DeadLetter] = []
        for number, raw in enumerate(records):
            try:
                events.append(parse(raw, number))
            except TelemetryError as error:
                dead.append(dead_letter(error, _SOURCE, number, raw))
        return events, dead
