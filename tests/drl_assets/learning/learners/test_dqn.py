"""The report's learner, step by step: several steps at once are the same steps."""

import numpy as np
import pytest
import torch

from drl_assets.learning.learners import dqn
from drl_assets.learning.learners.dqn import DQNConfig, DQNState
from drl_assets.learning.learners.networks import QNetwork, seeded_network

CPU = torch.device("cpu")
CONFIG = DQNConfig(target_update_steps=20, batch_size=16, learning_rate=1e-3)


def state_with_replay(rows: int = 300) -> DQNState:
    state, rng = dqn.start(CONFIG, seeded_network([16, 16], 0), 0, CPU), np.random.default_rng(1)
    state.replay.add(
        {
            "state": rng.random((rows, 30), dtype=np.float32),
            "action": rng.integers(5, size=rows),
            "reward": -rng.random(rows, dtype=np.float32) * 30,
            "next_state": rng.random((rows, 30), dtype=np.float32),
            "terminated": rng.random(rows) < 0.3,
        }
    )
    return state


def plain_steps(state: DQNState, count: int) -> tuple[QNetwork, list[float]]:
    """The same training written with autograd, torch's Adam and modules."""
    network, target = state.network, state.target
    optimizer = torch.optim.Adam(network.parameters(), lr=CONFIG.learning_rate)
    losses = []
    for step in range(1, count + 1):
        drawn = state.replay.sample(CONFIG.batch_size, state.rng)
        batch = {name: torch.from_numpy(column) for name, column in drawn.items()}
        with torch.no_grad():
            next_q_values = target(batch["next_state"]).max(dim=1).values
            td_target = batch["reward"] + CONFIG.gamma * next_q_values * ~batch["terminated"]
        q = network(batch["state"]).gather(1, batch["action"][:, None])[:, 0]
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(q, td_target)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(network.parameters(), CONFIG.clip)
        optimizer.step()
        if step % CONFIG.target_update_steps == 0:
            target.load_state_dict(network.state_dict())
    return network, losses


@pytest.mark.property(26)
@pytest.mark.parametrize("at_once", [1, 7, 50])
def test_steps_at_once_are_steps_one_by_one_and_those_of_autograd(at_once: int) -> None:
    state, (expected, plain_losses) = state_with_replay(), plain_steps(state_with_replay(), 50)
    losses: list[float] = []
    while state.gradient_steps < 50:
        count = min(at_once, 50 - state.gradient_steps)
        found, norms = dqn.update(state, CONFIG, CPU, count)
        assert len(norms) == count
        losses += found.tolist()
    for got, wanted in zip(state.network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-3)
    plain = state_with_replay()
    plain_steps(plain, 50)
    assert state.rng.bit_generator.state == plain.rng.bit_generator.state
