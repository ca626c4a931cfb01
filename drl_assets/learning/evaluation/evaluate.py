"""Policy evaluation by replay of recorded episodes: policies side by side, with intervals.

`simulate` plays a policy over every episode, `metrics` sums up, `intervals` adds confidence
intervals, and `evaluate_policies` puts the served policy beside its baselines. Evaluation never
trains: baselines come in tuned (`baselines.tune`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from drl_assets.learning.data.environment import LockstepReplay
from drl_assets.learning.data.episodes import Bools, Episodes, Floats, Ints
from drl_assets.learning.evaluation import bootstrap, curves
from drl_assets.learning.evaluation.bootstrap import Interval, SessionBootstrap
from drl_assets.learning.evaluation.policies import (
    Policy,
    QValues,
    baseline_policies,
    clairvoyant,
)
from drl_core.policy import reward
from drl_core.policy.actions import CONTAINING, Action
from drl_core.policy.features import SIGNAL_COUNT
from drl_core.policy.reward import CostTable
from drl_core.telemetry.event import SIGNALS

GAMMA = 0.99
BUDGET = 0.01
"""Share of benign episodes that may be interrupted in `containment_at_1pct`."""


@dataclass(frozen=True)
class Rollouts:
    """The outcome of each episode under a policy; every array but the last is [E]."""

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
    """The highest score while only monitoring."""
    row_score: Floats = field(default_factory=lambda: np.empty(0))
    """[N], the score at every window while only monitoring."""


def simulate(
    policy: Policy, episodes: Episodes, costs: CostTable = reward.DEFAULT_COSTS
) -> Rollouts:
    """Play a policy over every episode once."""
    count = len(episodes)
    effectiveness = np.asarray(costs.isolation_effectiveness)
    starts = episodes.offsets[:-1]
    returns, seconds = np.zeros(count), np.zeros(count)
    damage = episodes.damage[starts].copy()  # of the first window, which nobody can prevent
    final = np.full(count, -1, dtype=np.int64)
    next_damage = episodes.next_damage
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
        damage[active] += np.where(stops, 0.0, next_damage[rows] * (1 - effectiveness[in_force]))
    monitored = _while_monitoring(lambda replay: policy(replay)[1], episodes, costs)
    return Rollouts(
        returns=returns,
        final_action=final,
        seconds=seconds,
        damage=damage,
        damage_unattended=np.add.reduceat(episodes.damage, starts) if count else np.empty(0),
        score=np.maximum.reduceat(monitored, starts) if count else np.empty(0),
        row_score=monitored,
    )


def _while_monitoring(
    of: Callable[[LockstepReplay], Floats], episodes: Episodes, costs: CostTable
) -> Floats:
    """A number of each window under "continue monitoring", [N]."""
    found = np.empty(len(episodes.windows))
    replay = LockstepReplay(episodes, costs)
    while len(replay.active):
        found[replay.rows] = of(replay)
        replay.step(np.full(len(replay.active), Action.CONTINUE_MONITORING, dtype=np.int64))
    return found


Metrics = dict[str, float | None]


def metrics(rollouts: Rollouts, malicious: Bools) -> Metrics:
    """The seven figures of a policy; None where the episodes cannot tell.

    `utility`: mean discounted return per episode. `containment`: share of malicious episodes ended
    by terminate, quarantine or review. `benign_interruption`: share of benign episodes ended by
    terminate or quarantine. `time_to_containment_s`: mean over contained malicious episodes.
    `damage_prevented`: share of the unattended damage. `review_load`: share of all episodes sent to
    review. `containment_at_1pct`: containment by terminate or quarantine alone at the margin where
    at most 1 % of the benign episodes are interrupted.
    """
    ratios = {
        name: float(above.sum() / below.sum()) if below.sum() > 0 else None
        for name, (above, below) in _ratios(rollouts, malicious).items()
    }
    return {**ratios, "containment_at_1pct": containment_at(rollouts.score, malicious, BUDGET)}


def _ratios(rollouts: Rollouts, malicious: Bools) -> dict[str, tuple[Floats, Floats]]:
    """Six of the figures as numerators and denominators of each episode, [E] each."""
    stopped = np.isin(rollouts.final_action, CONTAINING)
    reviewed = rollouts.final_action == Action.REQUEST_HUMAN_REVIEW
    bad = malicious.astype(np.float64)
    contained = (stopped | reviewed) * bad
    every = np.ones(len(bad))
    prevented = rollouts.damage_unattended - rollouts.damage
    return {
        "utility": (rollouts.returns, every),
        "containment": (contained, bad),
        "benign_interruption": (stopped * (1 - bad), 1 - bad),
        "time_to_containment_s": (rollouts.seconds * contained, contained),
        "damage_prevented": (prevented * bad, rollouts.damage_unattended * bad),
        "review_load": (reviewed.astype(np.float64), every),
    }


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


def intervals(
    rollouts: Rollouts, episodes: Episodes, seed: int = 0, sessions: SessionBootstrap | None = None
) -> dict[str, Interval]:
    """95 % intervals of the figures of `metrics`: whole sessions resampled.

    That of `benign_interruption` is Clopper and Pearson's, which is exact but takes episodes as
    independent; `benign_interruption_by_session` resamples sessions. None where fewer than two
    sessions have such episodes.
    """
    sessions = sessions or SessionBootstrap(episodes.session, seed)
    ratios = _ratios(rollouts, episodes.malicious)
    found = {name: sessions.ratio(above, below) for name, (above, below) in ratios.items()}
    hits, benign = (int(x.sum()) for x in ratios["benign_interruption"])
    return {
        **found,
        "benign_interruption": bootstrap.clopper_pearson(hits, benign),
        "benign_interruption_by_session": found["benign_interruption"],
        "containment_at_1pct": sessions.containment_at(rollouts.score, episodes.malicious, BUDGET),
    }


def evaluate_policies(
    served: Policy,
    episodes: Episodes,
    baselines: dict[str, Any],
    costs: CostTable = reward.DEFAULT_COSTS,
    seed: int = 0,
    q_values: QValues | None = None,
    champion: Policy | None = None,
) -> dict[str, Any]:
    """The table of policies, as `drl evaluate --json` prints it.

    Args:
        served: our policy.
        episodes: held-out episodes.
        baselines: from `baselines.tune`.
        costs: the cost table.
        seed: of the random policy and the bootstrap.
        q_values: of our policy, for its calibration; left out without them.
        champion: the released policy that ours would replace, if there is one.

    Returns:
        episodes, malicious, sessions, sessions_malicious, sessions_benign, unlabelled; policies
        (name -> metrics, the served one as `drl`); intervals (name -> 95 %); advantage (baseline ->
        95 % interval of the paired mean difference in return, drl minus baseline, sessions
        resampled; None with one session) and advantage_mean; against_champion (figure -> mean and
        interval of the paired difference, see `_paired_differences`; None without one);
        per_attack_type, per_source and held_out_sessions, see `_by_group`; cost_curve,
        containment_over_time and calibration, see `curves`; notes, see `notes`.
    """
    policies = {**baseline_policies(baselines, seed), "drl": served, "clairvoyant": clairvoyant}
    if champion is not None:
        policies["champion"] = champion
    rollouts = {name: simulate(policy, episodes, costs) for name, policy in policies.items()}
    sessions, malicious = SessionBootstrap(episodes.session, seed), episodes.malicious
    ours, every = rollouts["drl"].returns, np.ones(len(episodes))
    others = {name: ours - one.returns for name, one in rollouts.items() if name != "drl"}
    scoring = {name: rollouts[name] for name in ("drl", *baselines)}
    types = np.asarray(episodes.attack_type, dtype=np.str_)
    sources = np.asarray([sandbox for sandbox, _ in episodes.names], dtype=np.str_)
    return {
        "episodes": len(episodes),
        "malicious": int(malicious.sum()),
        "sessions": len(sessions.names),
        "sessions_malicious": sessions.having(malicious),
        "sessions_benign": sessions.having(~malicious),
        "unlabelled": episodes.unlabelled,
        "policies": {name: metrics(one, malicious) for name, one in rollouts.items()},
        "intervals": {
            name: intervals(one, episodes, seed, sessions) for name, one in rollouts.items()
        },
        "advantage": {name: sessions.ratio(gain, every) for name, gain in others.items()},
        "advantage_mean": {
            name: float(gain.mean()) if len(gain) else None for name, gain in others.items()
        },
        "against_champion": _paired_differences(rollouts, malicious, sessions),
        "per_attack_type": _by_group(types, rollouts, episodes, seed),
        "per_source": _by_group(sources, rollouts, episodes, seed),
        "held_out_sessions": _session_table(sessions, episodes, rollouts["drl"]),
        "cost_curve": {
            name: curves.cost_curve(one.row_score, episodes, costs, GAMMA)
            for name, one in scoring.items()
        },
        "containment_over_time": {
            name: curves.containment_over_time(
                one.seconds, malicious & (one.final_action > 0), malicious
            )
            for name, one in scoring.items()
        },
        "calibration": {
            name: curves.calibration(confidence, malicious)
            for name, confidence in _confidences(rollouts, q_values, episodes, costs).items()
        },
        "notes": notes(episodes),
    }


def _confidences(
    rollouts: dict[str, Rollouts], q_values: QValues | None, episodes: Episodes, costs: CostTable
) -> dict[str, Floats]:
    """Highest confidence of each episode, [E]: of our Q-values, and of scores that are log-odds."""
    found: dict[str, Floats] = {}
    if q_values is not None and len(episodes):
        ours = _while_monitoring(
            lambda replay: curves.implied(q_values(replay), costs), episodes, costs
        )
        found["drl"] = np.maximum.reduceat(ours, episodes.offsets[:-1])
    for name in ("logistic_regression", "gradient_boosting"):
        if name in rollouts:
            found[name] = curves.logistic(rollouts[name].score)
    return found


def _by_group(
    group: Any, rollouts: dict[str, Rollouts], episodes: Episodes, seed: int
) -> dict[str, dict[str, Any]]:
    """The table within each group of episodes: how many, every policy's figures, our intervals."""
    found = {}
    for name in np.unique(group):
        of = np.flatnonzero(group == name)
        part = episodes.select(of)
        within = {policy: _select(one, of) for policy, one in rollouts.items()}
        drawn = SessionBootstrap(part.session, seed)
        found[str(name)] = {
            "episodes": len(part),
            "malicious": int(part.malicious.sum()),
            "sessions": len(set(part.session)),
            "policies": {policy: metrics(one, part.malicious) for policy, one in within.items()},
            "intervals": intervals(within["drl"], part, seed, drawn),
            "against_champion": _paired_differences(within, part.malicious, drawn),
        }
    return found


def _paired_differences(
    rollouts: dict[str, Rollouts], malicious: Bools, sessions: SessionBootstrap
) -> dict[str, dict[str, Any]] | None:
    """Ours minus the champion's, episode by episode, of the figures that the gates compare."""
    if "champion" not in rollouts:
        return None
    ours, theirs = (_ratios(rollouts[name], malicious) for name in ("drl", "champion"))
    found = {}
    for figure in ("utility", "benign_interruption", "review_load"):
        gain, of = ours[figure][0] - theirs[figure][0], ours[figure][1]
        mean = float(gain.sum() / of.sum()) if of.sum() > 0 else None
        found[figure] = {"mean": mean, "interval": sessions.ratio(gain, of)}
    return found


def _select(rollouts: Rollouts, of: Ints) -> Rollouts:
    return Rollouts(
        returns=rollouts.returns[of],
        final_action=rollouts.final_action[of],
        seconds=rollouts.seconds[of],
        damage=rollouts.damage[of],
        damage_unattended=rollouts.damage_unattended[of],
        score=rollouts.score[of],
    )


def _session_table(
    sessions: SessionBootstrap, episodes: Episodes, ours: Rollouts
) -> list[dict[str, Any]]:
    """Every session with its source, its episodes and our mean return."""
    found = []
    for at, name in enumerate(sessions.names):
        of = np.flatnonzero(sessions.member == at)
        found.append(
            {
                "session": name,
                "source": episodes.names[of[0]][0],
                "episodes": len(of),
                "malicious": int(episodes.malicious[of].sum()),
                "utility": float(ours.returns[of].mean()),
            }
        )
    return found


def notes(episodes: Episodes) -> list[str]:
    """What these episodes cannot tell, as sentences for the person who reads the table."""
    found = []
    malicious, sessions = episodes.malicious, np.asarray(episodes.session, dtype=np.str_)
    if episodes.unlabelled:
        found.append(
            f"{episodes.unlabelled} episodes carry no is_malicious and are left out: label them "
            "(is_malicious in the telemetry, or import with --label)"
        )
    for name, of, lost in (
        ("malicious", malicious, "containment, damage and time to containment"),
        ("benign", ~malicious, "interruption and containment at 1 %"),
    ):
        count = len(np.unique(sessions[of]))
        if not count:
            found.append(f"no {name} episode: {lost} cannot be estimated")
        elif count == 1:
            found.append(
                f"one {name} session only ({sessions[of][0]}): nothing can be said of other "
                f"{name} sessions, and no interval given"
            )
    if 0 < (~malicious).sum() < 1 / BUDGET:
        found.append(
            f"{(~malicious).sum()} benign episodes: at 1 % none of them may be interrupted, so "
            "containment_at_1pct is that of the highest benign score"
        )
    signals = episodes.windows[:, :SIGNAL_COUNT]
    never = np.flatnonzero(np.isnan(signals).all(axis=0))
    if len(signals) and len(never):
        found.append(
            f"never measured: {', '.join(SIGNALS[i] for i in never)}; the policy sees 0 there and "
            "the share of measured signals as a feature"
        )
    return found
