"""Off-policy evaluation: importance sampling and doubly robust estimates from logged interventions.

An experience frame with the columns `action`, `propensity` (of the behaviour policy) and `outcome`,
from sandboxes in `enforce` mode, comes in. The policy is greedy: an episode counts as far as it did
what the policy would have done. Three estimators: per-decision importance sampling (Precup et al.
2000), its weighted form, and the doubly robust recursion (Jiang & Li 2016) with our Q as control
variate. What the policy wants and the log never did has no support: it is not identifiable, and is
named.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from drl_assets.learning.data.environment import LockstepReplay
from drl_assets.learning.data.episodes import Bools, Episodes, Floats, Ints, from_experiences
from drl_assets.learning.evaluation import bootstrap
from drl_assets.learning.evaluation.bootstrap import SessionBootstrap
from drl_assets.learning.evaluation.policies import QValues
from drl_core.policy import reward
from drl_core.policy.actions import TERMINAL, Action, allowed
from drl_core.policy.reward import CostTable
from drl_core.telemetry.event import Outcome

GAMMA = 0.99
IN_EFFECT = [Outcome.APPLIED.value, Outcome.ALREADY_APPLIED.value]
"""After any other outcome of an action, monitoring went on."""


@dataclass(frozen=True)
class Log:
    """L logged decisions of E episodes, back to back, each episode complete and in order."""

    starts: Ints
    """[E], row of each episode's first decision."""
    action: Ints
    """[L], as logged."""
    propensity: Floats
    """[L], probability with which it was chosen."""
    reward: Floats
    """[L], received."""
    q: Floats
    """[L, 5], of the policy that is estimated; -inf where masked."""

    @property
    def lengths(self) -> Ints:
        """Decisions of each episode, [E]."""
        return np.diff(np.append(self.starts, len(self.action)))

    @property
    def time(self) -> Ints:
        """Decisions of the same episode before each, [L]."""
        return np.arange(len(self.action)) - np.repeat(self.starts, self.lengths)


def estimate(
    frame: pl.DataFrame, q_values: QValues, costs: CostTable = reward.DEFAULT_COSTS, seed: int = 0
) -> dict[str, Any]:
    """Estimates of a greedy policy's mean return from the interventions in an experience frame.

    Labelled episodes count whose every window, up to the action that ended them, carries an
    intervention; the others are `left_out` if they carry any. What was received is the hindsight
    reward of what took effect.

    Returns:
        that of `estimates`, and `left_out`.
    """
    episodes = from_experiences(frame)
    labelled = frame.filter(pl.col("is_malicious").is_not_null())
    taken = labelled["action"].is_not_null().to_numpy()
    action = labelled["action"].fill_null(0).to_numpy()
    done = labelled["outcome"].is_in(IN_EFFECT).fill_null(value=False).to_numpy()
    effect = np.where(done, action, int(Action.CONTINUE_MONITORING))
    # what a sandbox still reports after it was stopped is no decision any more
    stopped = _since_start(taken & np.isin(effect, TERMINAL), episodes) == 0
    broken = np.add.reduceat(stopped & ~taken, episodes.offsets[:-1]) if len(episodes) else taken
    some = np.add.reduceat(taken, episodes.offsets[:-1]) if len(episodes) else taken
    used = np.flatnonzero((broken == 0) & (some > 0))
    rows = np.flatnonzero(stopped & np.isin(episodes.per_row(np.arange(len(episodes))), used))
    member = episodes.per_row(np.arange(len(episodes)))[rows]
    rewards = labelled["rewards"].to_numpy().reshape(-1, len(Action))
    log = Log(
        starts=np.searchsorted(member, used),
        action=action[rows],
        propensity=labelled["propensity"].fill_null(1.0).to_numpy()[rows],
        reward=rewards[rows, effect[rows]],
        q=_logged_q(q_values, episodes, costs)[rows],
    )
    found = estimates(log, [episodes.session[e] for e in used], seed)
    return {**found, "left_out": int((some > 0).sum()) - len(used)}


def _since_start(mark: Bools, episodes: Episodes) -> Ints:
    """How many rows of the same episode before each one are marked, [N]."""
    before: Ints = np.cumsum(mark) - mark
    return before - episodes.per_row(before[episodes.offsets[:-1]])


def _logged_q(q_values: QValues, episodes: Episodes, costs: CostTable) -> Floats:
    found = np.empty((len(episodes.windows), len(Action)))
    replay = LockstepReplay(episodes, costs)
    while len(replay.active):
        found[replay.rows] = np.where(allowed(replay.level), q_values(replay), -np.inf)
        replay.step(np.zeros(len(replay.active), dtype=np.int64))
    return found


def estimates(log: Log, session: list[str], seed: int = 0) -> dict[str, Any]:
    """Estimates of the greedy policy's mean return.

    Args:
        log: the decisions.
        session: [E], of each episode.
        seed: of the bootstrap.

    Returns:
        decisions, episodes, sessions; logged (mean return of what was done), importance_sampling,
        weighted, doubly_robust, and their intervals (whole sessions resampled);
        effective_sample_size (Kish's, of episodes by their final weights); identifiable (every
        action that the policy wants somewhere was taken there at least once); actions, see
        `_support`.
    """
    wanted = log.q.argmax(axis=1) if len(log.q) else log.action
    ratio = (log.action == wanted) / log.propensity
    weight = np.empty(len(ratio))
    for start, length in zip(log.starts, log.lengths, strict=True):
        weight[start : start + length] = np.cumprod(ratio[start : start + length])
    discounted = GAMMA**log.time * log.reward
    sums = {
        "logged": _per_episode(discounted, log),
        "importance_sampling": _per_episode(weight * discounted, log),
        "doubly_robust": _doubly_robust(log, ratio),
    }
    sessions, every = SessionBootstrap(session, seed), np.ones(len(session))
    weighted, interval = _weighted_importance_sampling(log, weight, discounted, sessions)
    support = {action.label: _support(log, wanted, action) for action in Action}
    return {
        "decisions": len(log.action),
        "episodes": len(session),
        "sessions": len(sessions.names),
        **{name: float(each.mean()) if session else None for name, each in sums.items()},
        "weighted": weighted,
        "intervals": {
            **{name: sessions.ratio(each, every) for name, each in sums.items()},
            "weighted": interval,
        },
        "effective_sample_size": _effective(weight[log.starts + log.lengths - 1]),
        "identifiable": all(one["identifiable"] or not one["wanted"] for one in support.values()),
        "actions": support,
    }


def _per_episode(values: Floats, log: Log) -> Floats:
    return np.add.reduceat(values, log.starts) if len(log.starts) else np.empty(0)


def _doubly_robust(log: Log, ratio: Floats) -> Floats:
    """V(s) + ratio (r + gamma V' - Q(s, a)), from an episode's last decision to its first, [E]."""
    value = log.q.max(axis=1, initial=-np.inf)
    q_logged = log.q[np.arange(len(log.q)), log.action]
    error = log.reward - np.where(np.isfinite(q_logged), q_logged, 0.0)
    next_value = np.zeros(len(log.starts))
    for back in range(int(log.lengths.max(initial=0))):
        on = np.flatnonzero(log.lengths > back)
        row = (log.starts + log.lengths - 1 - back)[on]
        correction = ratio[row] * (error[row] + GAMMA * next_value[on])
        next_value[on] = value[row] + np.where(ratio[row] > 0, correction, 0.0)
    return next_value


def _weighted_importance_sampling(
    log: Log, weight: Floats, discounted: Floats, sessions: SessionBootstrap
) -> tuple[float | None, bootstrap.Interval]:
    """Weights are normalised at each time; an episode that has ended keeps its last one."""
    horizon, size = int(log.lengths.max(initial=0)), len(sessions.names)
    above, below = np.zeros((horizon, size)), np.zeros((horizon, size))
    for time in range(horizon):
        on = log.lengths > time
        row = log.starts + np.minimum(time, log.lengths - 1)
        below[time] = np.bincount(sessions.member, weight[row], size)
        received = np.where(on, weight[row] * discounted[row], 0.0)
        above[time] = np.bincount(sessions.member, received, size)
    if not horizon or (below.sum(axis=1) == 0).any():
        return None, None  # no logged episode does as the policy would
    point = float((above.sum(axis=1) / below.sum(axis=1)).sum())
    if size < 2:
        return point, None
    drawn = sessions.counts @ below.T
    whole = (drawn > 0).all(axis=1)
    values = (sessions.counts[whole] @ above.T / drawn[whole]).sum(axis=1)
    return point, bootstrap.quantiles(values)


def _support(log: Log, wanted: Ints, action: Action) -> dict[str, Any]:
    """Support of one action in the log.

    Returns:
        logged (how often it was taken), wanted (decisions where the policy would take it), agreed
        (of those, where the log took it), effective_sample_size (of those, by 1 / propensity),
        identifiable (`agreed` is not zero; where the policy never wants it, `logged` is not).
    """
    would, agreed = wanted == action, (wanted == action) & (log.action == action)
    logged = int((log.action == action).sum())
    return {
        "logged": logged,
        "wanted": int(would.sum()),
        "agreed": int(agreed.sum()),
        "effective_sample_size": _effective(1 / log.propensity[agreed]),
        "identifiable": bool(agreed.any()) if would.any() else logged > 0,
    }


def _effective(weight: Floats) -> float:
    """Kish's effective sample size."""
    squares = float((weight**2).sum())
    return float(weight.sum()) ** 2 / squares if squares > 0 else 0.0
