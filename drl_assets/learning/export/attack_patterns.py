"""Attack patterns: the malicious episodes that a policy would contain, as it recognised them."""

import datetime as dt

import numpy as np

from drl_assets.learning.data.environment import LockstepReplay
from drl_assets.learning.data.episodes import Episodes
from drl_assets.learning.evaluation import curves, policies
from drl_assets.learning.learners.networks import QFunction
from drl_core.policy import reward
from drl_core.policy.actions import TERMINAL, Action
from drl_core.policy.reward import CostTable
from drl_core.storage.patterns import AttackPattern


def patterns(
    network: QFunction,
    episodes: Episodes,
    version: str,
    costs: CostTable = reward.DEFAULT_COSTS,
) -> list[AttackPattern]:
    """One pattern for every malicious episode that the policy ends or hands to an analyst.

    `features` are those of the decision, `reward` is the hindsight reward of the action taken, and
    `confidence` the probability of malice implied by the Q-values (`curves.implied`).
    """
    q_values = policies.network_q(network)
    policy = policies.greedy(q_values)
    replay = LockstepReplay(episodes, costs)
    found: list[AttackPattern] = []
    while len(replay.active):
        active, rows, states = replay.active, replay.rows, replay.features
        actions, _ = policy(replay)
        confidence = curves.implied(q_values(replay), costs)
        rewards, _, _ = replay.step(actions)
        for at in np.flatnonzero(np.isin(actions, TERMINAL) & episodes.malicious[active]):
            episode, row = int(active[at]), int(rows[at])
            sandbox, name = episodes.names[episode]
            found.append(
                AttackPattern(
                    sandbox_id=sandbox,
                    episode_id=name,
                    step=int(episodes.steps[row]),
                    model_version=version,
                    features=[float(x) for x in states[at].astype(np.float32)],
                    action=int(actions[at]),
                    reward=float(rewards[at]),
                    attack_type=episodes.attack_type[episode],
                    confidence=float(confidence[at]),
                    time=dt.datetime.fromtimestamp(episodes.timestamps_ms[row] / 1000, dt.UTC),
                    artifact_sha256=episodes.artifacts[episode],
                    metadata={
                        "action": Action(actions[at]).label,
                        "session_id": episodes.session[episode],
                    },
                )
            )
    return found
