"""From Q-values to an action, under the rules that the configuration sets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from drl_core.policy.actions import CONTAINING, MAX_ISOLATION_LEVEL, Action
from drl_core.settings import Mode, Serving

LABELS = tuple(action.label for action in Action)
_ACTIONS = tuple(Action)
_EACH = range(len(_ACTIONS))


@dataclass(frozen=True)
class Rules:
    """What may change while the service runs; replaced as a whole, read once a request."""

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


def in_share(key: bytes, share: float, purpose: int) -> bool:
    """Whether an episode belongs to a share of all; the same for all its steps, in every worker.

    Args:
        key: 16 bytes that stand for the episode.
        share: 0..1.
        purpose: 0 or 1; shares for different purposes are drawn apart.
    """
    return int.from_bytes(key[8 * purpose : 8 * purpose + 4], "big") < share * 2**32


def choose(
    q_values: list[float], isolation_level: int, margin: float = 0.0
) -> tuple[Action, float, str]:
    """The allowed action of the highest Q-value, the confidence in it, and why.

    Args:
        q_values: finite, [5].
        isolation_level: in force; `increase_isolation` is masked at the highest.
        margin: how far a containing action must be above the best other one to be chosen.
    """
    values = list(q_values)
    masked = isolation_level >= MAX_ISOLATION_LEVEL
    if masked:
        values[Action.INCREASE_ISOLATION] = -math.inf
    order = sorted(_EACH, key=values.__getitem__, reverse=True)
    best, second = order[0], order[1]
    reason = (
        f"{LABELS[best]} has the highest Q-value, {values[best]:.4g}, "
        f"{values[best] - values[second]:.4g} above {LABELS[second]}."
    )
    if margin and best in CONTAINING:
        other = next(index for index in order if index not in CONTAINING)
        lead = values[best] - values[other]
        if lead < margin:
            reason = (
                f"{LABELS[best]} leads {LABELS[other]} by {lead:.4g}, less than the margin of "
                f"{margin:.4g} that containing takes, so {LABELS[other]}."
            )
            best = other
    top = max(values)
    confidence = math.exp(values[best] - top) / sum([math.exp(value - top) for value in values])
    if masked:
        reason += f" Masked at isolation level {isolation_level}: increase_isolation."
    return _ACTIONS[best], confidence, reason
