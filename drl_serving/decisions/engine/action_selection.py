"""Action selection: Q-values to actions, greedy under a mask and a margin, for one row or N.

Q-values, isolation levels and the configured margin come in, action ids go out; what a decision
says of its action (confidence, reason) is derived from it. Events, raw rows and the shadow
comparison all select here. The rule:

1. Mask: at the highest isolation level `increase_isolation` is not allowed.
2. Greedy: the allowed action of the highest Q-value, the first of equal ones.
3. Margin: where that is a containing action and leads the best action that does not contain by
   less than the margin, the latter is taken instead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from drl_core.policy.actions import CONTAINING, MAX_ISOLATION_LEVEL, Action
from drl_core.policy.features import Array
from drl_core.settings import Mode, Serving
from drl_serving.models.onnx_model import Models
from drl_serving.models.schemas import Role

LABELS = tuple(action.label for action in Action)
_CONTAINING = tuple(int(action) for action in CONTAINING)
_OTHERS = tuple(int(action) for action in Action if action not in CONTAINING)
_INCREASE = int(Action.INCREASE_ISOLATION)

Where = Callable[[Any, Any, Any], Any]
BestOf = Callable[[tuple[int, ...], Sequence[Any]], tuple[Any, Any]]


def _where(condition: Any, then: Any, otherwise: Any) -> Any:
    """`numpy.where` of plain numbers."""
    return then if condition else otherwise


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


def select(values: Sequence[float], margin: float) -> int:
    """The action that is taken of one row; the rule is stated at the top of this module.

    Args:
        values: from `mask`.
        margin: how far a containing action must lead the best other one; 0 asks for none.
    """
    action: int = _rule(_best_of_row, values, margin, _where)
    return action


def select_actions(
    q_values: npt.NDArray[Any], isolation_level: Array, margin: float
) -> npt.NDArray[np.int64]:
    """Mask and select for each of N rows.

    Args:
        q_values: finite, [N, 5].
        isolation_level: in force, [N].
        margin: as in `select`.

    Returns:
        Action ids, [N].
    """
    columns = mask(list(q_values.astype(np.float64).T), isolation_level, np.where)
    actions: npt.NDArray[np.int64] = _rule(_best_of_rows, columns, margin, np.where)
    return actions


def mask(q_values: Sequence[Any], isolation_level: Any, where: Where = _where) -> list[Any]:
    """The Q-values of the five actions, -inf where the isolation level does not allow one.

    Args:
        q_values: five numbers, or five columns [N].
        isolation_level: in force; a number, or a column [N].
        where: `numpy.where` for columns.
    """
    values = list(q_values)
    values[_INCREASE] = where(isolation_level < MAX_ISOLATION_LEVEL, values[_INCREASE], -math.inf)
    return values


def _rule(best_of: BestOf, values: Sequence[Any], margin: float, where: Where) -> Any:
    """Greedy, with a margin: over numbers, or over columns of N rows.

    A row of plain numbers costs less than one call of numpy, thousands of rows are a few passes
    over columns; so both are here, and the rule is there once.
    """
    other, other_value = best_of(_OTHERS, values)
    best, value = best_of(_CONTAINING, values)
    is_best = (value > other_value) | ((value == other_value) & (best < other))
    return where(is_best & (value - other_value >= margin), best, other)


def _best_of_row(actions: tuple[int, ...], values: Sequence[float]) -> tuple[int, float]:
    """The first of the actions that has the highest value, and the value."""
    best = max(actions, key=values.__getitem__)
    return best, values[best]


def _best_of_rows(actions: tuple[int, ...], values: Sequence[Any]) -> tuple[Any, Any]:
    """The same of N rows."""
    table = np.stack([values[action] for action in actions])
    return np.array(actions)[table.argmax(0)], table.max(0)


def explain(
    action: int, values: list[float], isolation_level: int, margin: float
) -> tuple[float, str]:
    """The confidence in a selected action, and why it was selected.

    Args:
        action: of one row.
        values: the row's five Q-values, from `mask`.
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
    if values[_INCREASE] == -math.inf:
        reason += f" Masked at isolation level {isolation_level}: increase_isolation."
    return confidence, reason
