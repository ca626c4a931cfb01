"""JSON schemas of the telemetry response."""

from msgspec import Struct


class RefusedRecord(Struct, frozen=True):
    """A record that is not a valid event; it was kept as a dead letter."""

    record: int
    """Position in the list, or line number, from 0."""
    field: str
    reason: str


class AcceptedTelemetry(Struct, frozen=True, kw_only=True):
    """Events that are durable now, and records that were refused."""

    accepted: int
    refused: int
    refusals: list[RefusedRecord]
    """The first 100 of them."""
