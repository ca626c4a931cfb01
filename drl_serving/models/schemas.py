"""What is told of models in JSON."""

from msgspec import Struct


class ReleaseSummary(Struct, frozen=True, kw_only=True):
    """One release in the model store."""

    sequence: int
    model_version: str | None
    training_date: str | None
    sha256: str | None
    rollback_of: str | None
    serving: bool
    refused: str | None
    """Why the service would not load it; None for a sound release."""
