"""What a decision looks like in JSON."""

from typing import Literal

from msgspec import Struct


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
    mode: Literal["observe", "enforce"]
    model_version: str
    sequence: int
    """Number of the release that the model came from."""
    features_version: int
