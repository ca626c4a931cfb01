"""Cost curve, containment over time and calibration (reliability) of a policy.

What became of episodes comes in, plain lists come out, for `drl evaluate --json` and the
pictures.
"""

from typing import Any

import numpy as np

from drl_assets.learning.data.episodes import LEVEL, Bools, Episodes, Floats
from drl_assets.learning.evaluation.stopping_rules import Stopping
from drl_core.policy import reward
from drl_core.policy.actions import Action
from drl_core.policy.reward import CostTable

POINTS = 60
BINS = 10


def cost_curve(
    score: Floats, episodes: Episodes, costs: CostTable, gamma: float
) -> dict[str, list[float | None]]:
    """Quarantine at the first window whose score exceeds a margin, for up to POINTS margins.

    The same sweep for every policy, whatever it does by itself: it compares scores, and leaves out
    isolation and review.

    Args:
        score: [N], while only monitoring.
        episodes: the same windows.
        costs: the cost table.
        gamma: discount per window.

    Returns:
        margin (None: never), utility, containment and benign_interruption, each [K].
    """
    if not len(episodes):
        return {name: [] for name in ("margin", "utility", "containment", "benign_interruption")}
    last = np.zeros(len(score), dtype=np.bool_)
    last[episodes.offsets[1:] - 1] = True
    malicious, level = episodes.per_row(episodes.malicious), episodes.windows[:, LEVEL]
    rewards = reward.hindsight(episodes.next_damage, malicious, level.astype(np.int64), costs)
    rows = {"last": last, "malicious": malicious, "rewards": rewards}
    act = np.full(len(score), int(Action.QUARANTINE_FILE))
    sweep = Stopping(rows, gamma).sweep(score, act)
    chosen = np.unique(np.linspace(0, len(sweep.margin) - 1, POINTS).astype(np.int64))
    return {
        name: [float(x) if np.isfinite(x) else None for x in column[chosen]]
        for name, column in zip(
            ("margin", "utility", "containment", "benign_interruption"), sweep, strict=True
        )
    }


def containment_over_time(
    seconds: Floats, contained: Bools, malicious: Bools
) -> dict[str, list[float]]:
    """Share of the malicious episodes that are contained by a time since their start.

    Args:
        seconds: [E], from an episode's start to the decision that ended it.
        contained: [E], malicious and ended by the policy.
        malicious: [E].

    Returns:
        seconds and share, each of at most POINTS, both rising.
    """
    times = np.sort(seconds[contained])
    chosen = np.unique(np.linspace(0, len(times) - 1, POINTS).astype(np.int64))[: len(times)]
    return {
        "seconds": times[chosen].tolist(),
        "share": ((chosen + 1) / max(int(malicious.sum()), 1)).tolist(),
    }


def logistic(score: Floats) -> Floats:
    """Log-odds as probabilities."""
    result: Floats = 1 / (1 + np.exp(-np.clip(score, -50, 50)))
    return result


def implied(q: Floats, costs: CostTable) -> Floats:
    """The probability of malice that is implied by Q-values [N, 5], [N].

    Quarantine costs `interrupt_quarantine` where the episode is benign and nothing where it is
    malicious, so its Q-value is that cost times the probability that it is benign.
    """
    cost = max(costs.interrupt_quarantine, 1e-9)
    result: Floats = np.clip(1 + q[:, Action.QUARANTINE_FILE] / cost, 0.0, 1.0)
    return result


def calibration(confidence: Floats, malicious: Bools) -> dict[str, Any]:
    """How often containing would be right (the episode is malicious), beside the confidence in it.

    Args:
        confidence: [E], the highest while only monitoring: of the decision to contain an episode
            where that is most wanted.
        malicious: [E].

    Returns:
        brier, ece (mean over episodes of |confidence - share| of their bin; None of no episodes)
        and bins: low, high, episodes, confidence (mean), malicious (share).
    """
    member = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    bins = []
    for at in range(BINS):
        of = member == at
        if of.any():
            bins.append(
                {
                    "low": at / BINS,
                    "high": (at + 1) / BINS,
                    "episodes": int(of.sum()),
                    "confidence": float(confidence[of].mean()),
                    "malicious": float(malicious[of].mean()),
                }
            )
    gaps = [b["episodes"] * abs(b["confidence"] - b["malicious"]) for b in bins]
    return {
        "brier": float(((confidence - malicious) ** 2).mean()) if len(confidence) else None,
        "ece": float(sum(gaps) / len(confidence)) if len(confidence) else None,
        "bins": bins,
    }
