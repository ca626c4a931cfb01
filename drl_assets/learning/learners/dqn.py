"""The report's learner: DQN with experience replay, epsilon-greedy over replayed episodes.

Replay of 100,000, mini-batches of 64, Adam at 1e-4, discount 0.99, MSE, a hard update of the target
network every 1,000 gradient steps, gradient clipping, epsilon falling exponentially from 1.0 to 0.1
over the episodes (Mnih et al. 2015). The original report is its source; `fitted_q` says why it is
not the default. Read `fit` first, then `update`, `td_target`, `loss_gradient` and `loss`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drl_assets.learning.data.environment import ContainmentEnv
from drl_assets.learning.data.replay_buffer import ReplayBuffer, Rows, view
from drl_assets.learning.learners.base import FittedPolicy, Progress, TrainingTask
from drl_assets.learning.learners.mlp_ensemble import Layers, MLPEnsemble
from drl_assets.learning.learners.networks import QNetwork, seeded_network
from drl_core.policy.actions import ACTION_COUNT
from drl_core.policy.features import FEATURE_COUNT
from drl_core.settings import Learning

TRANSITION_COLUMNS: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
    "state": ((FEATURE_COUNT,), np.float32),
    "action": ((), np.int64),
    "reward": ((), np.float32),
    "next_state": ((FEATURE_COUNT,), np.float32),
    "terminated": ((), np.bool_),
}
SCALARS = ("rng", "episode", "gradient_steps", "returns", "losses", "max_gradient_norm")
"""What of the state is no tensor."""


@dataclass(frozen=True)
class DQNConfig:
    """The report's hyper-parameters, and the algorithm that they belong to."""

    title: ClassVar[str] = "the report's DQN"
    replay_columns: ClassVar[Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]] = (
        TRANSITION_COLUMNS
    )
    steps_setting: ClassVar[str] = "episodes"
    summary: ClassVar[Sequence[str]] = ()
    inapplicable_gates: ClassVar[frozenset[str]] = frozenset({"labels_consistent", "oracle_regret"})
    is_baseline: ClassVar[bool] = True

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

    @classmethod
    def from_settings(cls, learning: Learning) -> Self:
        """The report's, but for how many episodes are played and how many steps remembered."""
        return cls(episodes=learning.episodes, replay_capacity=learning.replay_capacity)

    def create(self, task: TrainingTask) -> "DQN":
        """The algorithm before its first episode."""
        return DQN(self, task)

    @classmethod
    def build_network(
        cls, hidden_layers: Sequence[int], hyperparameters: Mapping[str, Any]
    ) -> QNetwork:
        """A perceptron of a checkpoint's sizes."""
        return QNetwork(hidden_layers)

    @classmethod
    def explain(cls, hyperparameters: Mapping[str, Any]) -> str:
        """Nothing was chosen."""
        return "hyper-parameters as the report has them"


@dataclass
class DQNState:
    """Everything that training needs to resume bit for bit."""

    stack: MLPEnsemble
    """The learned network and Adam's moments."""
    frozen: Layers
    """The target network's parameters."""
    replay: ReplayBuffer
    drawn: Rows
    """Where batches are drawn into."""
    batch: dict[str, Tensor]
    """Its columns."""
    rng: np.random.Generator
    episode: int = 0
    gradient_steps: int = 0
    returns: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Mean loss of each episode that had one."""
    max_gradient_norm: float = 0.0
    """Greatest norm of a gradient after clipping."""

    @property
    def network(self) -> QNetwork:
        """A copy of the learned network."""
        return self.stack.network()

    @property
    def target(self) -> QNetwork:
        """A copy of the target network."""
        return self.stack.network(layers=self.frozen)


def start(config: DQNConfig, network: QNetwork, seed: int, device: torch.device) -> DQNState:
    """State before the first episode."""
    stack = MLPEnsemble.of([network], config.batch_size, device=device)
    replay = ReplayBuffer(TRANSITION_COLUMNS, config.replay_capacity)
    drawn = replay.allocate(config.batch_size)
    batch = {name: torch.from_numpy(column) for name, column in view(drawn).items()}
    return DQNState(stack, stack.copy(), replay, drawn, batch, np.random.default_rng(seed))


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
        total, losses, norms = _play_episode(state, env, config, device)
        state.episode += 1
        state.returns.append(total)
        if losses:
            state.losses.append(float(torch.cat(losses).mean()))
            greatest = float(torch.cat(norms).max().clamp(max=config.clip))
            state.max_gradient_norm = max(state.max_gradient_norm, greatest)
            if not np.isfinite(state.losses[-1]):
                raise FloatingPointError(f"loss is not finite in episode {state.episode}")
        on_episode(state)


def _play_episode(
    state: DQNState, env: ContainmentEnv, config: DQNConfig, device: torch.device
) -> tuple[float, list[Tensor], list[Tensor]]:
    """Play one episode, a gradient step a window; its return, and each step's loss and norm."""
    epsilon = config.epsilon(state.episode)
    observation, info = env.reset(seed=int(state.rng.integers(2**31)))
    total, done = 0.0, False
    losses: list[Tensor] = []
    norms: list[Tensor] = []
    while not done:
        action = epsilon_greedy(state, observation, info["action_mask"], epsilon, device)
        next_observation, reward, terminated, truncated, info = env.step(np.int64(action))
        state.replay.add(
            {
                "state": observation[None],
                "action": np.asarray([action]),
                "reward": np.asarray([reward], dtype=np.float32),
                "next_state": next_observation[None],
                "terminated": np.asarray([terminated]),
            }
        )
        observation, done = next_observation, terminated or truncated
        total += reward
        if len(state.replay) >= config.batch_size:
            step_loss, norm = update(state, config, device)
            losses.append(step_loss)
            norms.append(norm)
    return total, losses, norms


def epsilon_greedy(
    state: DQNState,
    observation: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    epsilon: float,
    device: torch.device,
) -> int:
    """An allowed action: uniform with probability epsilon, else of the highest Q-value."""
    if state.rng.random() < epsilon:
        return int(state.rng.choice(np.flatnonzero(mask)))
    q = state.stack.predict(torch.from_numpy(observation[None]).to(device))[0, 0].cpu().numpy()
    return int(np.where(mask, q, -np.inf).argmax())


def update(
    state: DQNState, config: DQNConfig, device: torch.device, count: int = 1
) -> tuple[Tensor, Tensor]:
    """So many gradient steps on mini-batches; the target network follows every 1,000.

    As the target network stands still in between, several mini-batches are drawn, and their TD
    targets computed, at once: the same steps as one by one, and faster.

    Returns:
        The losses [count], and the gradients' norms [count] before clipping.
    """
    gradients: list[Tensor] = []
    norms: list[Tensor] = []
    with torch.inference_mode(not state.stack.autograd):
        while len(norms) < count:
            left = config.target_update_steps - state.gradient_steps % config.target_update_steps
            found = _stretch(state, config, device, min(count - len(norms), left))
            gradients += found[0]
            norms += found[1]
            if state.gradient_steps % config.target_update_steps == 0:
                state.frozen.flat.copy_(state.stack.parameters.flat)
        return loss(torch.cat(gradients), config.batch_size), torch.cat(norms)


def _stretch(
    state: DQNState, config: DQNConfig, device: torch.device, count: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Steps towards one target network; of each its `loss_gradient` [1, B, 5] and norm [1]."""
    stack, size = state.stack, config.batch_size
    rows = _draw(state, count * size)
    batch = {name: column.to(device) for name, column in rows.items()}
    td_targets = td_target(state, batch, config.gamma)
    # the mean square's derivative by an error; zero for the actions that were not taken
    slopes = td_targets.new_zeros(len(td_targets), ACTION_COUNT)
    slopes.scatter_(1, batch["action"][:, None], 2 / size)
    gradients, norms = [], []
    for x, target, slope in zip(
        *(torch.split(column, size) for column in (batch["state"], td_targets, slopes)), strict=True
    ):
        gradients.append(loss_gradient(stack.forward(x), target, slope))
        stack.backward(gradients[-1])
        norms.append(stack.clip(config.clip))
        stack.step(config.learning_rate)
    state.gradient_steps += count
    return gradients, norms


def td_target(state: DQNState, batch: dict[str, Tensor], gamma: float) -> Tensor:
    """r + gamma * max_a Q_target(s', a), [N, 1]; r where s' is terminal."""
    next_q_values = state.stack.predict(batch["next_state"], state.frozen)[0].amax(1)
    next_q_values.masked_fill_(batch["terminated"], 0.0)
    return batch["reward"].add(next_q_values, alpha=gamma)[:, None]


def loss_gradient(q_values: Tensor, td_targets: Tensor, slope: Tensor) -> Tensor:
    """The derivative of `loss` by the Q-values, [1, B, 5]: 2/B times the TD error of the action
    that was taken (`slope`, [B, 5]), zero for the others."""
    return (q_values - td_targets).mul_(slope)


def loss(gradients: Tensor, batch_size: int) -> Tensor:
    """Mean squared TD error of each batch, [S], from its `loss_gradient` [S, B, 5], in place."""
    return gradients.square_().sum((1, 2)).mul_(batch_size / 4)


def _draw(state: DQNState, count: int) -> dict[str, Tensor]:
    """Columns of so many rows drawn from the replay, in memory that is kept for the next time."""
    if len(state.drawn) != count:
        state.drawn = state.replay.allocate(count)
        state.batch = {n: torch.from_numpy(column) for n, column in view(state.drawn).items()}
    state.replay.sample(count, state.rng, state.drawn)
    return state.batch


def dump(state: DQNState) -> dict[str, Any]:
    """The state as tensors, numbers and a generator, for `checkpoint.save_progress`."""
    return {
        **{f"stack.{name}": tensor for name, tensor in state.stack.dump().items()},
        "frozen": state.frozen.flat,
        "replay": {n: torch.from_numpy(c) for n, c in state.replay.snapshot().items()},
        **{name: getattr(state, name) for name in SCALARS},
    }


def restore(state: DQNState, saved: Mapping[str, Any]) -> None:
    """Bring a fresh state to where `dump` was called."""
    state.stack.restore({name: saved[f"stack.{name}"] for name in state.stack.dump()})
    state.frozen.flat.copy_(saved["frozen"])
    state.replay = ReplayBuffer(TRANSITION_COLUMNS, state.replay.capacity)
    state.replay.add({name: column.numpy() for name, column in saved["replay"].items()})
    for name in SCALARS:
        setattr(state, name, saved[name])


class DQN:
    """The algorithm: one run of `fit`, warm-started with the parent's weights and replay."""

    def __init__(self, config: DQNConfig, task: TrainingTask) -> None:
        learning, parent = task.learning, task.parent
        network = seeded_network(learning.hidden_layers, learning.seed)
        if parent and parent.hidden_layers == learning.hidden_layers:
            network.load_state_dict(parent.weights)
        self._config, self._task = config, task
        self._state = start(config, network, learning.seed, task.device)
        if parent and parent.replay:
            self._state.replay.add(parent.replay)

    @property
    def network(self) -> QNetwork:
        """A copy of the learned network, on the CPU."""
        return self._state.network.cpu()

    def fit(self, progress: Progress, save: Callable[[], None]) -> None:
        """Play `config.episodes` episodes."""
        config = self._config

        def episode(state: DQNState) -> None:
            recent = float(np.mean(state.returns[-10:]))
            progress(state.episode, config.episodes, f"return {recent:.2f}")
            if state.episode % config.checkpoint_episodes == 0:
                save()

        env = ContainmentEnv(self._task.episodes, self._task.costs)
        fit(self._state, env, config, self._task.device, episode)

    def dump(self) -> dict[str, Any]:
        """See `dump` of the module."""
        return dump(self._state)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """See `restore` of the module."""
        restore(self._state, saved)

    def result(self) -> FittedPolicy:
        """The policy, with the transitions that the next training goes on from."""
        state = self._state
        return FittedPolicy(
            network=self.network,
            hidden_layers=list(self._task.learning.hidden_layers),
            config=self._config,
            replay=state.replay.snapshot(),
            trajectories=self._task.trajectories,
            gradient_steps=state.gradient_steps,
            losses=state.losses,
            max_gradient_norm=state.max_gradient_norm,
            returns=state.returns,
        )
