"""JSON schemas of the model routes: releases, manifests, the result of a rollback."""

from typing import Any, Literal

from msgspec import Struct

Role = Literal["champion", "challenger"]
"""The champion decides; a challenger is compared with it, and decides the canary's share."""


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


class ModelDetails(Struct, frozen=True, kw_only=True):
    """One model of the store."""

    manifest: dict[str, Any]
    """As it was signed, without the golden rows."""
    key_id: str
    """The key that signed it."""
    serving: bool
    challenger: bool
    loaded: bool
    """In the worker that answers."""


class RolledBack(Struct, frozen=True, kw_only=True):
    """What is released now."""

    model_version: str
    sequence: int
    rollback_of: str | None
