"""Policies to evaluate on recorded episodes: ours, the tuned baselines, and the bounds.

A policy is a function of what a `LockstepReplay` observes. Networks and tuned baselines come in,
policies come out; `evaluation` plays them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch

from drl_assets.learning.data.environment import LockstepReplay
from drl_assets.learning.data.episodes import Floats, Ints
from drl_assets.learning.evaluation import baselines
from drl_assets.learning.learners.networks import QFunction, QNetwork
from drl_core.policy.actions import CONTAINING, Action, allowed

Policy = Callable[[LockstepReplay], tuple[Ints, Floats]]
"""What is observed -> (actions [A], scores [A]: how much the policy wants to contain now)."""

QValues = Callable[[LockstepReplay], Floats]
"""What is observed -> Q-values, [A, 5]."""


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


def network_q(network: QFunction) -> QValues:
    """Of a torch network."""

    def q_values(replay: LockstepReplay) -> Floats:
        with torch.no_grad():
            q = network(torch.from_numpy(replay.features.astype(np.float32)))
        result: Floats = q.numpy().astype(np.float64)
        return result

    return q_values


def onnx_q(session: onnxruntime.InferenceSession) -> QValues:
    """Of a served graph: raw windows and carry go in, as in the service."""

    def q_values(replay: LockstepReplay) -> Floats:
        (q,) = session.run(["q_values"], {"windows": replay.windows, "carry": replay.carry})
        result: Floats = q.astype(np.float64)
        return result

    return q_values


def greedy(q_values: QValues) -> Policy:
    """The allowed action of the highest Q-value."""

    def policy(replay: LockstepReplay) -> tuple[Ints, Floats]:
        masked = np.where(allowed(replay.level), q_values(replay), -np.inf)
        contain = masked[:, list(CONTAINING)].max(axis=1)
        return masked.argmax(axis=1), contain - masked[:, Action.CONTINUE_MONITORING]

    return policy


def network_policy(network: QFunction) -> Policy:
    """Greedy on a torch network."""
    return greedy(network_q(network))


def onnx_policy(session: onnxruntime.InferenceSession) -> Policy:
    """Greedy on a served graph."""
    return greedy(onnx_q(session))


def baseline_policy(baseline: dict[str, Any]) -> Policy:
    """A tuned baseline, see `baselines.tune` and `baselines.report_dqn`."""
    if baseline["kind"] == "network":
        network = QNetwork(baseline["hidden_layers"])
        network.load_state_dict(baseline["weights"])
        return network_policy(network)

    def policy(replay: LockstepReplay) -> tuple[Ints, Floats]:
        # as in training: a split between two float32 values must not be decided by their rounding
        features = replay.features.astype(np.float32).astype(np.float64)
        actions, scores = baselines.act(baseline, features)
        actions[(actions == Action.INCREASE_ISOLATION) & (replay.level > 0)] = 0  # it stays
        return actions, scores

    return policy


def baseline_policies(tuned: dict[str, Any], seed: int = 0) -> dict[str, Policy]:
    """The policies of every table but ours and the bound: the simple ones and the tuned ones."""
    simple: dict[str, Policy] = {
        "never_act": never_act,
        "always_terminate": always_terminate,
        "random": random_policy(seed),
    }
    return simple | {name: baseline_policy(one) for name, one in tuned.items()}
