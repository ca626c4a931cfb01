"""Schemas of decisions: JSON of the routes, entries of the shared write-ahead journal."""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from drl_core.policy.features import CARRY_WIDTH
from drl_core.settings import Mode
from drl_core.telemetry.event import Event
from drl_serving.models.schemas import Role


class Decision(Struct, frozen=True, kw_only=True, gc=False):
    """What to do after one observation window."""

    decision_id: str
    """UUID; the idempotency key of the action."""
    sandbox_id: str
    episode_id: str
    step: int
    action: int
    """0..4, see `action_name`."""
    action_name: str
    q_values: list[float]
    """Of the five actions, masked ones included."""
    confidence: float
    """Softmax of the allowed actions' Q-values at temperature 1, at the chosen action. It ranks
    decisions of one model by their margin; it is not a calibrated probability."""
    reason: str
    isolation_level: int
    """In force during the window, before this action."""
    mode: Mode
    model_version: str
    role: Role
    """`challenger` where the episode belongs to the canary's share."""
    sequence: int
    """Number of the release that the model came from."""
    features_version: int


Carry = Annotated[list[float], Meta(min_length=CARRY_WIDTH, max_length=CARRY_WIDTH)]


class CarriedEvent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An event with its episode's history, for callers that keep it themselves."""

    event: Event
    carry: Carry | None = None
    """As the answer to the step before gave it; left out at step 0."""


class CarriedDecision(Struct, frozen=True, kw_only=True):
    """A decision, and the history to send with the next step."""

    decision: Decision
    carry: list[float]


class JournalEntry(Struct, frozen=True, kw_only=True, gc=False):
    """One decision as it was made: enough to make it again."""

    at_ms: int
    """Epoch milliseconds."""
    kept: bool
    """Whether the decision log keeps it."""
    principal: str
    """Who asked."""
    trace_id: str
    artifact_sha256: str | None
    window: list[float | None]
    """The 14 numbers of `drl_core.policy.features.window`; None where not measured."""
    carry: list[float]
    """Of the windows before this one."""
    decision: Decision


class Feature(Struct, frozen=True):
    """One named number."""

    name: str
    value: float | None


class ModelLineage(Struct, frozen=True, kw_only=True):
    """Where a model came from."""

    model_version: str
    sequence: int
    sha256: str
    checkpoint_sha256: str
    dagster_run_id: str | None
    git_commit: str | None
    training_date: str
    parent_version: str | None
    batch_partitions: list[str]
    """The telemetry batches that taught it: partition keys of `telemetry_batches`."""


class Lineage(Struct, frozen=True, kw_only=True):
    """From a decision back to what taught it."""

    decision: Decision
    at_ms: int
    principal: str
    trace_id: str
    artifact_sha256: str | None
    window: list[Feature]
    carry: list[float]
    model: ModelLineage


class DecisionPage(Struct, frozen=True, kw_only=True):
    """Logged decisions, newest first."""

    items: list[JournalEntry]
    next: str | None
    """Send it as `cursor` for the next page; None at the end."""


encode_json = msgspec.json.Encoder().encode
