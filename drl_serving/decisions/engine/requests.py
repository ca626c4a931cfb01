"""Data types of the decision engine: what a request asks for, and what it gets."""

from collections.abc import Sequence

from msgspec import Struct

from drl_core.policy.features import Array
from drl_core.telemetry.event import Event
from drl_serving.decisions.schemas import Decision


class Caller(Struct, frozen=True, gc=False):
    """Who asks, for the journal."""

    principal: str = "anonymous"
    trace_id: str = ""


class DecisionRequest(Struct, frozen=True, gc=False):
    """Events that are decided together: all of them, or none."""

    events: Sequence[Event]
    caller: Caller = Caller()
    carries: Array | None = None
    """Of callers that keep the history: float64 [N, 14], each of the steps before its event."""


class ScoredStep(Struct, frozen=True, gc=False):
    """One step of an episode that was decided just now."""

    name: bytes
    """The episode's database key."""
    event: Event
    window: Array
    """float64 [14]"""
    before: Array
    """The carry of the steps before, float64 [14]."""
    after: Array
    """The carry that includes the window, float64 [14]."""
    decision: Decision


class Decided(Struct, frozen=True, gc=False):
    """The answer to a request."""

    answers: list[Decision]
    """One an event; a redelivered step has the decision that it had before."""
    scored: dict[int, ScoredStep]
    """The steps that were decided just now, by the place of their event, as they were scored."""
