"""The reward: the cost table, and the hindsight reward of each action at a recorded step.

A recorded episode is what happens while one watches. Until the artefact is contained its telemetry
hardly depends on us, so the reward of every action can be computed in hindsight (Sinclair et al.
2022, arXiv 2207.06272). The one exception is isolation, which cuts the network off from the next
window on; `CostTable.isolation_effectiveness` stands for what it saves.

The decision after window t can only prevent what happens from window t + 1 on, so the damage that
an action answers for is the damage of the next window; after the last window there is none.
"""

from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from drl_core.policy.actions import ACTION_COUNT, MAX_ISOLATION_LEVEL, Action, allowed
from drl_core.telemetry.event import SIGNALS

Cost = Annotated[float, Meta(ge=0, le=1e6)]
Share = Annotated[float, Meta(ge=0, le=1)]


class CostTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The weights of the reward, in one unit: a window of severe, unhindered attack does about 1.

    Damage per window is `severity * min(most, presence + sum of weight * normalised signal)`.
    """

    version: int = 1
    damage_presence: Cost = 0.05
    damage_file_writes: Cost = 0.4
    damage_bytes_sent: Cost = 0.3
    damage_child_processes: Cost = 0.1
    damage_persistence: Cost = 0.2
    damage_privilege: Cost = 0.2
    damage_injection: Cost = 0.3
    damage_extra: dict[str, Cost] = msgspec.field(default_factory=lambda: {"files_encrypted": 0.5})
    """Cost per unit of a named extra signal of the source."""
    damage_most: Cost = 5.0
    """The most that one window of full severity counts for, whatever extra signals say."""

    interrupt_terminate: Cost = 8.0
    interrupt_quarantine: Cost = 6.0
    recurrence: Cost = 0.5
    """Terminating without quarantine lets a malicious file run again."""
    review: Cost = 0.9
    review_delay: Cost = 0.1
    """A benign process is suspended until the verdict."""
    isolation_per_window: tuple[Cost, Cost, Cost, Cost] = (0.0, 0.02, 0.05, 0.1)
    isolation_effectiveness: tuple[Share, Share, Share, Share] = (0.0, 0.4, 0.7, 0.9)


DEFAULT_COSTS = CostTable()

_DAMAGE_SIGNALS = (
    ("file_write_count", "damage_file_writes"),
    ("bytes_sent", "damage_bytes_sent"),
    ("child_processes", "damage_child_processes"),
    ("registry_modification", "damage_persistence"),
    ("privilege_escalation_attempt", "damage_privilege"),
    ("code_injection_detected", "damage_injection"),
)


def damage(
    now: npt.NDArray[np.float64],
    severity: npt.NDArray[np.float64],
    extra: dict[str, npt.NDArray[np.float64]] | None = None,
    costs: CostTable = DEFAULT_COSTS,
) -> npt.NDArray[np.float64]:
    """Damage of each window without intervention.

    Args:
        now: features 0..11 of each window, [N, 12].
        severity: 0 for benign, the label's severity (1 where unlabelled) for malicious, [N].
        extra: named extra signals, each [N]; below 0 counts as 0, nothing undoes damage.
        costs: the weights.
    """
    weights = np.zeros(len(SIGNALS))
    for signal, field in _DAMAGE_SIGNALS:
        weights[SIGNALS.index(signal)] = getattr(costs, field)
    total = costs.damage_presence + now.astype(np.float64) @ weights
    for name, weight in costs.damage_extra.items():
        if extra and name in extra:
            total = total + weight * np.maximum(np.nan_to_num(extra[name]), 0.0)
    result: npt.NDArray[np.float64] = severity * np.minimum(total, costs.damage_most)
    return result


def hindsight(
    next_damage: npt.NDArray[np.float64],
    malicious: npt.NDArray[np.bool_],
    level: npt.NDArray[np.int64],
    costs: CostTable = DEFAULT_COSTS,
) -> npt.NDArray[np.float64]:
    """The hindsight reward of each action at each step, had it been taken there.

    Args:
        next_damage: damage of the next window without intervention, 0 after the last one, [N].
        malicious: the label, [N].
        level: isolation level before the decision, 0..3, [N].
        costs: the cost table.

    Returns:
        float64 [N, 5]; -inf where an action is masked.
    """
    effectiveness = np.asarray(costs.isolation_effectiveness)
    upkeep = np.asarray(costs.isolation_per_window)
    raised = np.minimum(level + 1, MAX_ISOLATION_LEVEL)
    benign = ~malicious
    rewards = np.empty((len(next_damage), ACTION_COUNT))
    rewards[:, Action.CONTINUE_MONITORING] = (
        -next_damage * (1 - effectiveness[level]) - upkeep[level]
    )
    rewards[:, Action.INCREASE_ISOLATION] = (
        -next_damage * (1 - effectiveness[raised]) - upkeep[raised]
    )
    rewards[:, Action.TERMINATE_PROCESS] = np.where(
        benign, -costs.interrupt_terminate, -costs.recurrence
    )
    rewards[:, Action.QUARANTINE_FILE] = np.where(benign, -costs.interrupt_quarantine, 0.0)
    rewards[:, Action.REQUEST_HUMAN_REVIEW] = -costs.review - benign * costs.review_delay
    rewards[~allowed(level)] = -np.inf
    return rewards
