"""Action selection: Q-values to actions, greedy under a mask and a margin, for N rows at once.

Q-values, isolation levels and the configured margin come in, action ids go out; what a decision
says of its action (confidence, reason) is derived from it. Events, raw rows and the shadow
comparison all select here. The rule:

1. Mask: at the highest isolation level `increase_isolation` is not allowed.
2. Greedy: the allowed action of the highest Q-value, the first of equal ones.
3. Margin: where that is a containing action and leads the best action that does not contain by
   less than the margin, the latter is taken instead.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from drl_core.policy.actions import ACTION_COUNT, CONTAINING, MAX_ISOLATION_LEVEL, Action, allowed
from drl_core.policy.features import Array
from drl_core.settings import Mode, Serving
from drl_serving.models.onnx_model import Models
from drl_serving.models.schemas import Role

LABELS = tuple(action.label for action in Action)
_MASKS = np.where(allowed(np.arange(MAX_ISOLATION_LEVEL + 1)), 0.0, -np.inf)
"""What is added to the Q-values, by isolation level: float64 [4, 5]."""
_CONTAINS = np.isin(np.arange(ACTION_COUNT), CONTAINING)


@dataclass(frozen=True)
class Rules:
    """What may change while the service runs; replaced as a whole, read once a batch."""

    mode: Mode = "observe"
    sandbox_modes: Mapping[str, Mode] = field(default_factory=dict)
    containment_margin: float = 0.0
    canary_share: float = 0.0
    decision_log_share: float = 1.0

    @classmethod
    def of(cls, serving: Serving) -> Self:
        """The rules of a configuration."""
        return cls(
            mode=serving.mode,
            sandbox_modes=serving.sandbox_modes,
            containment_margin=serving.containment_margin,
            canary_share=serving.canary_share,
            decision_log_share=serving.decision_log_share,
        )

    def mode_of(self, sandbox_id: str) -> Mode:
        """The mode of a sandbox."""
        return self.sandbox_modes.get(sandbox_id, self.mode)

    def role_of(self, name: bytes, models: Models) -> Role:
        """Which model decides an episode, by its key; the canary draws its share by it."""
        if models.challenger is not None and in_share(name, self.canary_share, 0):
            return "challenger"
        return "champion"


def in_share(key: bytes, share: float, purpose: int) -> bool:
    """Whether an episode belongs to a share of all; the same for all its steps, in every worker.

    Args:
        key: 16 bytes that stand for the episode.
        share: 0..1.
        purpose: 0 or 1; shares for different purposes are drawn apart.
    """
    return int.from_bytes(key[8 * purpose : 8 * purpose + 4], "big") < share * 2**32


def select_actions(
    q_values: npt.NDArray[Any], isolation_level: Array, margin: float = 0.0
) -> tuple[npt.NDArray[np.intp], Array]:
    """Select the action of each of N rows; the rule is stated at the top of this module.

    Args:
        q_values: finite, [N, 5].
        isolation_level: in force, whole numbers from 0, [N].
        margin: how far a containing action must lead the best other one; 0 asks for none.

    Returns:
        actions: ids, [N].
        allowed: the Q-values as float64 [N, 5], -inf where masked; for `explain`.
    """
    values: Array = q_values + _MASKS.take(isolation_level.astype(np.intp), 0, mode="clip")
    best = values.argmax(1)
    if not margin:
        return best, values
    rows = np.arange(len(values))
    other = np.where(_CONTAINS, -np.inf, values).argmax(1)
    falls_short = values[rows, best] - values[rows, other] < margin
    return np.where(_CONTAINS[best] & falls_short, other, best), values


def explain(
    action: int, values: list[float], isolation_level: int, margin: float
) -> tuple[float, str]:
    """The confidence in a selected action, and why it was selected.

    Args:
        action: of one row.
        values: the row's allowed Q-values, [5], as `select_actions` gives them.
        isolation_level: in force.
        margin: that the action was selected under.

    Returns:
        The softmax of the allowed Q-values at the action, and a sentence or two.
    """
    top = max(values)
    best = values.index(top)
    if action == best:
        rest = values.copy()
        rest[action] = -math.inf
        second = max(rest)
        reason = (
            f"{LABELS[action]} has the highest Q-value, {top:.4g}, "
            f"{top - second:.4g} above {LABELS[rest.index(second)]}."
        )
    else:
        reason = (
            f"{LABELS[best]} leads {LABELS[action]} by {top - values[action]:.4g}, "
            f"less than the margin of {margin:.4g} that containing takes, so {LABELS[action]}."
        )
    confidence = math.exp(values[action] - top) / sum([math.exp(value - top) for value in values])
    if values[Action.INCREASE_ISOLATION] == -math.inf:
        reason += f" Masked at isolation level {isolation_level}: increase_isolation."
    return confidence, reason
