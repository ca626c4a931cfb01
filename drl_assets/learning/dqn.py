"""The report's learner: DQN with an epsilon-greedy loop over replayed episodes, whole as specified.

Replay of 100,000, batches of 64, Adam at 1e-4, discount 0.99, MSE, a hard target update every 1,000
gradient steps, gradient clipping, epsilon falling exponentially from 1.0 to 0.1 over the episodes
(Mnih et al. 2015). The original report is its source; `fitted.py` says why it is not the default.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from drl_assets.learning.environment import ContainmentEnv
from drl_assets.learning.network import QNetwork
from drl_assets.learning.replay import Columns, ReplayBuffer
from drl_core.features import FEATURE_COUNT

TRANSITION_COLUMNS: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
    "state": ((FEATURE_COUNT,), np.float32),
    "action": ((), np.int64),
    "reward": ((), np.float32),
    "next_state": ((FEATURE_COUNT,), np.float32),
    "terminated": ((), np.bool_),
}


@dataclass(frozen=True)
class DQNConfig:
    """Hyper-parameters of the report's preset."""

    episodes: int = 500
    batch_size: int = 64
    learning_rate: float = 1e-4
    gamma: float = 0.99
    target_update_steps: int = 1000
    """Gradient steps between hard updates of the target network."""
    replay_capacity: int = 100_000
    epsilon_start: float = 1.0
    epsilon_end: float = 0.1
    clip: float = 10.0
    checkpoint_episodes: int = 50

    def epsilon(self, episode: int) -> float:
        """Exploration in an episode: exponential from start to end, reached at the last one."""
        share = min(episode / max(self.episodes - 1, 1), 1.0)
        return float(self.epsilon_start * (self.epsilon_end / self.epsilon_start) ** share)


@dataclass
class DQNState:
    """Everything that training needs to go on bit for bit."""

    network: QNetwork
    target: QNetwork
    optimizer: torch.optim.Optimizer
    replay: ReplayBuffer
    rng: np.random.Generator
    episode: int
    gradient_steps: int
    returns: list[float]
    losses: list[float]
    """Mean loss of each episode that had one."""
    max_gradient_norm: float = 0.0
    """Greatest norm after clipping."""


def start(config: DQNConfig, network: QNetwork, seed: int, device: torch.device) -> DQNState:
    """State before the first episode."""
    network = network.to(device)
    return DQNState(
        network,
        copy.deepcopy(network),
        torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True),
        ReplayBuffer(TRANSITION_COLUMNS, config.replay_capacity),
        np.random.default_rng(seed),
        0,
        0,
        [],
        [],
    )


def fit(
    state: DQNState,
    env: ContainmentEnv,
    config: DQNConfig,
    device: torch.device,
    on_episode: Callable[[DQNState], None] = lambda _: None,
) -> None:
    """Train until `config.episodes`, in place.

    Args:
        state: where to begin.
        env: the replay environment.
        config: hyper-parameters.
        device: where the networks are.
        on_episode: called after each episode, to save or to show progress.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    while state.episode < config.episodes:
        epsilon = config.epsilon(state.episode)
        observation, info = env.reset(seed=int(state.rng.integers(2**31)))
        total, losses, done = 0.0, [], False
        while not done:
            action = _act(state, observation, info["action_mask"], epsilon, device)
            following, reward, terminated, truncated, info = env.step(np.int64(action))
            state.replay.add(
                {
                    "state": observation[None],
                    "action": np.asarray([action]),
                    "reward": np.asarray([reward], dtype=np.float32),
                    "next_state": following[None],
                    "terminated": np.asarray([terminated]),
                }
            )
            observation, done = following, terminated or truncated
            total += reward
            if len(state.replay) >= config.batch_size:
                losses.append(gradient_step(state, config, device))
        state.episode += 1
        state.returns.append(total)
        if losses:
            state.losses.append(float(np.mean(losses)))
            if not np.isfinite(state.losses[-1]):
                raise FloatingPointError(f"loss is not finite in episode {state.episode}")
        on_episode(state)


def _act(
    state: DQNState,
    observation: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    epsilon: float,
    device: torch.device,
) -> int:
    if state.rng.random() < epsilon:
        return int(state.rng.choice(np.flatnonzero(mask)))
    with torch.no_grad():
        q = state.network(torch.from_numpy(observation).to(device)).cpu().numpy()
    return int(np.where(mask, q, -np.inf).argmax())


def gradient_step(state: DQNState, config: DQNConfig, device: torch.device) -> float:
    """One batch: MSE to r + gamma * max Q_target(s'), clipped; the target follows every 1,000."""
    batch: Columns = state.replay.sample(config.batch_size, state.rng)
    tensors = {name: torch.from_numpy(column).to(device) for name, column in batch.items()}
    with torch.no_grad():
        following = state.target(tensors["next_state"]).max(dim=1).values
        goal = tensors["reward"] + config.gamma * torch.where(tensors["terminated"], 0.0, following)
    q = state.network(tensors["state"]).gather(1, tensors["action"][:, None])[:, 0]
    loss = nn.functional.mse_loss(q, goal)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = float(nn.utils.clip_grad_norm_(state.network.parameters(), config.clip))
    state.max_gradient_norm = max(state.max_gradient_norm, min(norm, config.clip))
    state.optimizer.step()
    state.gradient_steps += 1
    if state.gradient_steps % config.target_update_steps == 0:
        state.target.load_state_dict(state.network.state_dict())
    return float(loss.detach())


def dump(state: DQNState) -> dict[str, Any]:
    """The state as tensors, numbers and a generator, for `checkpoint.save_progress`."""
    return {
        "network": state.network.state_dict(),
        "target": state.target.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "replay": {n: torch.from_numpy(c) for n, c in state.replay.snapshot().items()},
        "rng": state.rng,
        "episode": state.episode,
        "gradient_steps": state.gradient_steps,
        "returns": state.returns,
        "losses": state.losses,
        "max_gradient_norm": state.max_gradient_norm,
    }


def restore(state: DQNState, saved: dict[str, Any]) -> None:
    """Bring a fresh state to where `dump` was called."""
    for name in ("network", "target", "optimizer"):
        getattr(state, name).load_state_dict(saved[name])
    state.replay = ReplayBuffer(TRANSITION_COLUMNS, state.replay.capacity)
    state.replay.add({name: column.numpy() for name, column in saved["replay"].items()})
    for name in ("rng", "episode", "gradient_steps", "returns", "losses", "max_gradient_norm"):
        setattr(state, name, saved[name])
