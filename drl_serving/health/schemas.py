"""JSON schemas of liveness and readiness."""

from typing import Literal

from msgspec import Struct


class Live(Struct, frozen=True):
    """The process answers."""

    status: Literal["live"] = "live"


class Ready(Struct, frozen=True, kw_only=True):
    """Whether decisions can be made, and with what."""

    status: Literal["ready", "no-model"]
    model_version: str | None
    sequence: int | None
    model_key_trusted: bool | None
    """False where the model serves on though the key that signed it was distrusted since."""
    mode: Literal["observe", "enforce"]
    landing_writable: bool
    """Whether telemetry can be made durable now."""
    episodes: int
