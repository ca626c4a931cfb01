"""Evaluation on recorded episodes: policies side by side, in the terms of the people who run them.

A policy is a function of what a `LockstepReplay` observes. `simulate` plays it over every episode,
`metrics` sums up, `table` puts the served policy beside its baselines, with intervals. Evaluation
never trains: `tune_baselines` tunes baselines on the training episodes, and numbers come in here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from drl_assets.learning.environment import LockstepReplay
from drl_assets.learning.episodes import Bools, Episodes, Floats, Ints
from drl_assets.learning.network import QNetwork
from drl_core import reward
from drl_core.actions import CONTAINING, Action, allowed
from drl_core.features import FEATURES
from drl_core.reward import CostTable

GAMMA = 0.99
BOOTSTRAP = 1000

Policy = Callable[[LockstepReplay], tuple[Ints, Floats]]
"""What is observed -> (actions [A], scores [A]: how much the policy wants to contain now)."""


def _constant(action: Action) -> Policy:
    def policy(replay: LockstepReplay) -> tuple[Ints, Floats]:
        count = len(replay.active)
        return np.full(count, action, dtype=np.int64), np.zeros(count)

    return policy


never_act = _constant(Action.CONTINUE_MONITORING)
always_terminate = _constant(Action.TERMINATE_PROCESS)


def random_policy(seed: int) -> Policy:
    """Uniform over the allowed actions."""
    rng = np.random.default_rng(seed)

    def policy(replay: LockstepReplay) -> tuple[Ints, Floats]:
        draw = rng.random((len(replay.active), len(Action)))
        draw[~allowed(replay.level)] = -1.0
        return draw.argmax(axis=1), rng.random(len(replay.active))

    return policy


def clairvoyant(replay: LockstepReplay) -> tuple[Ints, Floats]:
    """Knows the label: the bound that nobody reaches."""
    malicious = replay.episodes.malicious[replay.active]
    actions = np.where(malicious, Action.QUARANTINE_FILE, Action.CONTINUE_MONITORING)
    return actions.astype(np.int64), malicious.astype(np.float64)


def network_policy(network: QNetwork) -> Policy:
    """Greedy on a torch network."""

    def policy(replay: LockstepReplay) -> tuple[Ints, Floats]:
        with torch.no_grad():
            q = network(torch.from_numpy(replay.features.astype(np.float32))).numpy()
        return _greedy(q, replay.level)

    return policy


def onnx_policy(session: onnxruntime.InferenceSession) -> Policy:
    """Greedy on a served graph: raw windows and carry go in, as in the service."""

    def policy(replay: LockstepReplay) -> tuple[Ints, Floats]:
        (q,) = session.run(["q_values"], {"windows": replay.windows, "carry": replay.carry})
        return _greedy(q, replay.level)

    return policy


def _greedy(q: npt.NDArray[np.float32], level: Ints) -> tuple[Ints, Floats]:
    masked = np.where(allowed(level), q.astype(np.float64), -np.inf)
    contain = masked[:, list(CONTAINING)].max(axis=1)
    return masked.argmax(axis=1), contain - masked[:, Action.CONTINUE_MONITORING]


def scorer_policy(weights: Floats, bias: float, threshold: float) -> Policy:
    """Quarantine where a linear score of the features exceeds a threshold."""

    def policy(replay: LockstepReplay) -> tuple[Ints, Floats]:
        score = replay.features @ weights + bias
        actions = np.where(score > threshold, Action.QUARANTINE_FILE, Action.CONTINUE_MONITORING)
        return actions.astype(np.int64), score

    return policy


@dataclass(frozen=True)
class Played:
    """What became of each episode under a policy; every array is [E]."""

    returns: Floats
    """Discounted."""
    final_action: Ints
    """The action that ended it, -1 where none did."""
    seconds: Floats
    """From its start to the decision that ended it, or to its own end."""
    damage: Floats
    """Suffered."""
    damage_unattended: Floats
    score: Floats
    """The highest score while only watching."""


def simulate(policy: Policy, episodes: Episodes, costs: CostTable = reward.DEFAULT_COSTS) -> Played:
    """Play a policy over every episode once."""
    count = len(episodes)
    effectiveness = np.asarray(costs.isolation_effectiveness)
    starts = episodes.offsets[:-1]
    returns, seconds = np.zeros(count), np.zeros(count)
    damage = episodes.damage[starts].copy()  # of the first window, which nobody can prevent
    final = np.full(count, -1, dtype=np.int64)
    following = episodes.next_damage
    replay = LockstepReplay(episodes, costs)
    while len(replay.active):
        active, rows, level = replay.active, replay.rows, replay.level
        seconds[active] = replay.carry[:, -1] + replay.windows[:, -2]
        actions, _ = policy(replay)
        discount = GAMMA**replay.time
        rewards, terminated, _ = replay.step(actions)
        returns[active] += discount * rewards
        stops = np.isin(actions, (*CONTAINING, Action.REQUEST_HUMAN_REVIEW))
        final[active[stops & terminated]] = actions[stops & terminated]
        in_force = np.minimum(level + (actions == Action.INCREASE_ISOLATION), 3)
        damage[active] += np.where(stops, 0.0, following[rows] * (1 - effectiveness[in_force]))
    return Played(
        returns=returns,
        final_action=final,
        seconds=seconds,
        damage=damage,
        damage_unattended=np.add.reduceat(episodes.damage, starts) if count else np.empty(0),
        score=_watched_score(policy, episodes, costs),
    )


def _watched_score(policy: Policy, episodes: Episodes, costs: CostTable) -> Floats:
    best = np.full(len(episodes), -np.inf)
    replay = LockstepReplay(episodes, costs)
    while len(replay.active):
        active = replay.active
        _, score = policy(replay)
        best[active] = np.maximum(best[active], score)
        replay.step(np.full(len(active), Action.CONTINUE_MONITORING, dtype=np.int64))
    return best


Metrics = dict[str, float | None]


def metrics(played: Played, malicious: Bools) -> Metrics:
    """The seven figures of a policy; None where the episodes cannot tell.

    `utility`: mean discounted return per episode. `containment`: share of malicious episodes ended
    by terminate, quarantine or review. `benign_interruption`: share of benign episodes ended by
    terminate or quarantine. `time_to_containment_s`: mean over contained malicious episodes.
    `damage_prevented`: share of the unattended damage. `review_load`: share of all episodes sent to
    review. `containment_at_1pct`: containment by terminate or quarantine alone at the margin where
    at most 1 % of the benign episodes are interrupted.
    """
    stopped = np.isin(played.final_action, CONTAINING)
    reviewed = played.final_action == Action.REQUEST_HUMAN_REVIEW
    contained = (stopped | reviewed) & malicious
    unattended = played.damage_unattended[malicious].sum()
    return {
        "utility": _mean(played.returns),
        "containment": _mean((stopped | reviewed)[malicious]),
        "benign_interruption": _mean(stopped[~malicious]),
        "time_to_containment_s": _mean(played.seconds[contained]),
        "damage_prevented": (
            float(1 - played.damage[malicious].sum() / unattended) if unattended > 0 else None
        ),
        "review_load": _mean(reviewed),
        "containment_at_1pct": containment_at(played.score, malicious, 0.01),
    }


def _mean(values: npt.NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def containment_at(score: Floats, malicious: Bools, budget: float) -> float | None:
    """Share of malicious episodes whose score exceeds the margin that spends a benign budget.

    The margin is the lowest at which at most `budget` of the benign episodes lie above it; with
    fewer than 1 / budget of them, none may.
    """
    benign = np.sort(score[~malicious])[::-1]
    if not len(benign) or not malicious.any():
        return None
    margin = benign[int(budget * len(benign))]
    return float((score[malicious] > margin).mean())


def intervals(played: Played, episodes: Episodes, seed: int = 0) -> dict[str, list[float] | None]:
    """95 % intervals: bootstrap over sessions for utility, Clopper-Pearson for interruption."""
    from scipy.stats import beta

    stopped = np.isin(played.final_action, CONTAINING)[~episodes.malicious]
    hits, n = int(stopped.sum()), len(stopped)
    exact = [
        float(beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0,
        float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0,
    ]
    return {
        "utility": session_bootstrap(played.returns, episodes.session, seed),
        "benign_interruption": exact if n else None,
    }


def session_bootstrap(values: Floats, session: list[str], seed: int = 0) -> list[float] | None:
    """95 % interval of a mean over episodes, whole sessions resampled; None with fewer than two."""
    names, member = np.unique(np.asarray(session), return_inverse=True)
    if len(names) < 2:
        return None
    sums = np.bincount(member, weights=values)
    sizes = np.bincount(member)
    draw = np.random.default_rng(seed).integers(len(names), size=(BOOTSTRAP, len(names)))
    means = sums[draw].sum(axis=1) / sizes[draw].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return [float(low), float(high)]


def tune_baselines(
    episodes: Episodes, costs: CostTable = reward.DEFAULT_COSTS, seed: int = 0
) -> dict[str, Any]:
    """Baselines fitted on training episodes, their thresholds chosen by the same utility.

    Returns:
        name -> {"weights" [30], "bias", "threshold", "about"}; empty unless both classes are there.
    """
    if episodes.malicious.all() or not episodes.malicious.any():
        return {}
    from sklearn.linear_model import LogisticRegression

    states, labels = _watched_features(episodes, costs)
    tuned = {}
    best_rule: tuple[float, dict[str, Any]] | None = None
    for column, name in enumerate(FEATURES):
        for sign in (1.0, -1.0):
            weights = np.zeros(len(FEATURES))
            weights[column] = sign
            rule, utility = _tune_threshold(weights, 0.0, episodes, states, costs)
            if best_rule is None or utility > best_rule[0]:
                best_rule = utility, {**rule, "about": f"{'' if sign > 0 else '-'}{name}"}
    if best_rule:
        tuned["threshold_rule"] = best_rule[1]
    model = LogisticRegression(max_iter=1000, class_weight="balanced", random_state=seed)
    model.fit(states, labels)
    weights, bias = model.coef_[0].astype(np.float64), float(model.intercept_[0])
    rule, _ = _tune_threshold(weights, bias, episodes, states, costs)
    tuned["logistic_regression"] = {**rule, "about": "all 30 features"}
    return tuned


def _watched_features(episodes: Episodes, costs: CostTable) -> tuple[Floats, Bools]:
    from drl_core import features

    states, _ = features.fold(episodes.windows, episodes.first, episodes.carry)
    return states.astype(np.float64), episodes.per_row(episodes.malicious).astype(np.bool_)


def _tune_threshold(
    weights: Floats, bias: float, episodes: Episodes, states: Floats, costs: CostTable
) -> tuple[dict[str, Any], float]:
    """The threshold of highest mean return when everything above it is quarantined."""
    score = states @ weights + bias
    # the rule fires at the first window whose score exceeds it, and stays fired: a running maximum
    # in each episode, for all episodes at once by lifting each above the one before
    lift = episodes.per_row(np.arange(len(episodes))) * (np.ptp(score) + 1.0)
    running = np.maximum.accumulate(score + lift) - lift
    watching = _discounted_damage(episodes)
    best = (-np.inf, float("inf"))
    levels = np.unique(np.quantile(score, np.linspace(0, 1, 49)))
    between = (levels[1:] + levels[:-1]) / 2  # on a score itself, rounding would decide
    for threshold in (levels[0] - 1.0, *between, np.inf):
        returns = _stopping_returns(running > threshold, watching, episodes, costs)
        if returns.mean() > best[0]:
            best = (float(returns.mean()), float(threshold))
    return (
        {"weights": weights.tolist(), "bias": bias, "threshold": min(best[1], 1e30)},
        best[0],
    )


def _discounted_damage(episodes: Episodes) -> Floats:
    """-gamma^t * next damage of each row: the rewards of only watching, [N]."""
    position = np.arange(len(episodes.windows)) - episodes.per_row(episodes.offsets[:-1])
    result: Floats = -(GAMMA**position) * episodes.next_damage
    return result


def _stopping_returns(
    fired: Bools, watching: Floats, episodes: Episodes, costs: CostTable
) -> Floats:
    starts = episodes.offsets[:-1]
    kept = np.add.reduceat(np.where(fired, 0.0, watching), starts)
    ever = np.logical_or.reduceat(fired, starts)
    when = np.add.reduceat(~fired, starts)
    stop = np.where(episodes.malicious, 0.0, -costs.interrupt_quarantine)
    result: Floats = kept + np.where(ever, GAMMA**when * stop, 0.0)
    return result


def baseline_policies(baselines: dict[str, Any], seed: int = 0) -> dict[str, Policy]:
    """Policies that stand in every table, the tuned ones from their numbers."""
    policies: dict[str, Policy] = {
        "never_act": never_act,
        "always_terminate": always_terminate,
        "random": random_policy(seed),
    }
    for name, numbers in baselines.items():
        policies[name] = scorer_policy(
            np.asarray(numbers["weights"]), numbers["bias"], numbers["threshold"]
        )
    return policies


def table(
    served: Policy,
    episodes: Episodes,
    baselines: dict[str, Any],
    costs: CostTable = reward.DEFAULT_COSTS,
    seed: int = 0,
) -> dict[str, Any]:
    """The table of policies, as `drl evaluate --json` prints it.

    Returns:
        episodes, malicious, sessions, unlabelled; policies (name -> metrics, the served one as
        `drl`); intervals (name -> 95 %); advantage (baseline -> 95 % interval of the paired mean
        difference in return, drl minus baseline, sessions resampled; None with one session).
    """
    policies = {**baseline_policies(baselines, seed), "drl": served, "clairvoyant": clairvoyant}
    played = {name: simulate(policy, episodes, costs) for name, policy in policies.items()}
    ours = played["drl"].returns
    return {
        "episodes": len(episodes),
        "malicious": int(episodes.malicious.sum()),
        "sessions": len(set(episodes.session)),
        "unlabelled": episodes.unlabelled,
        "policies": {name: metrics(one, episodes.malicious) for name, one in played.items()},
        "intervals": {name: intervals(one, episodes, seed) for name, one in played.items()},
        "advantage": {
            name: session_bootstrap(ours - one.returns, episodes.session, seed)
            for name, one in played.items()
            if name != "drl"
        },
    }
