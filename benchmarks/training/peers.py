"""DQN's update as each contender does it: 30-256-256-5, batches of 64 out of 100,000 transitions.

Each function takes the transitions, sets its library up as the library's documentation does, and
gives two jobs: n updates (sampling, targets from a target network copied every 1,000 updates, loss,
gradient, Adam at 1e-4), and n samples alone. Libraries are imported within, so that a process
loads one of them. `floor` is no learner: it is the 11 matrix products of one update and nothing
else, which no learner in float32 on these shapes can do without.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from drl_assets.learning.learners import dqn
from drl_assets.learning.learners.networks import seeded_network

Columns = dict[str, npt.NDArray[Any]]
Jobs = tuple[Callable[[int], object], Callable[[int], object] | None]

STATES, ACTIONS, HIDDEN = 30, 5, [256, 256]
CAPACITY, BATCH, RATE, GAMMA, TARGET, CLIP = 100_000, 64, 1e-4, 0.99, 1000, 10.0
EPISODE = 50


def transitions(seed: int = 0) -> Columns:
    """A full replay of random transitions in episodes of 50."""
    rng = np.random.default_rng(seed)
    return {
        "state": rng.random((CAPACITY, STATES), dtype=np.float32),
        "action": rng.integers(ACTIONS, size=CAPACITY),
        "reward": -rng.random(CAPACITY, dtype=np.float32),
        "next_state": rng.random((CAPACITY, STATES), dtype=np.float32),
        "terminated": np.arange(1, CAPACITY + 1) % EPISODE == 0,
    }


class Spaces(gymnasium.Env[npt.NDArray[np.float32], np.int64]):
    """An environment for libraries that ask one for its spaces; it is never stepped."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (STATES,), np.float32)
    action_space = gymnasium.spaces.Discrete(ACTIONS)


def network() -> nn.Sequential:
    """The spec's network, for libraries that take any module."""
    return nn.Sequential(
        nn.Linear(STATES, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, ACTIONS),
    )


def repeated(job: Callable[[], object]) -> Callable[[int], object]:
    """The job as many times as asked for."""

    def jobs(count: int) -> None:
        for _ in range(count):
            job()

    return jobs


def ours(data: Columns, at_once: int | None = None) -> Jobs:
    """The report's preset: `drl_assets.learning.learners.dqn`.

    Args:
        data: the transitions.
        at_once: updates to a call; where None, as many as there are.
    """
    config, device = dqn.DQNConfig(), torch.device("cpu")
    state = dqn.start(config, seeded_network(HIDDEN, 0), 0, device)
    state.replay.add(data)
    room = state.replay.allocate(BATCH)

    def update(count: int) -> None:
        for _ in range(0, count, at_once or count):
            dqn.update(state, config, device, at_once or count)

    return update, repeated(lambda: state.replay.sample(BATCH, state.rng, room))


def floor(data: Columns) -> Jobs:
    """The matrix products, into kept buffers: forward of two networks, backward of one.

    Weights lie in memory with the narrower side first, which is the fastest.
    """
    x, following = (torch.from_numpy(data[n][:BATCH].copy()) for n in ("state", "next_state"))
    (u1, u2, u3), (w1, w2, w3), (g1, g2, g3) = (
        (torch.rand(STATES, 256), torch.rand(256, 256), torch.rand(ACTIONS, 256).T)
        for _ in range(3)
    )
    h1, h2, d1, d2 = (torch.zeros(BATCH, 256) for _ in range(4))
    out, d_out = torch.zeros(BATCH, ACTIONS), torch.rand(BATCH, ACTIONS)

    def update() -> None:
        torch.mm(following, u1, out=h1)
        torch.mm(h1, u2, out=h2)
        torch.mm(h2, u3, out=out)
        torch.mm(x, w1, out=h1)
        torch.mm(h1, w2, out=h2)
        torch.mm(h2, w3, out=out)
        torch.mm(h2.T, d_out, out=g3)
        torch.mm(d_out, w3.T, out=d2)
        torch.mm(h1.T, d2, out=g2)
        torch.mm(d2, w2.T, out=d1)
        torch.mm(x.T, d1, out=g1)

    return repeated(update), None


def stable_baselines3(data: Columns, at_once: int | None = None) -> Jobs:
    """`DQN("MlpPolicy", ...)`.

    Args:
        data: the transitions.
        at_once: its `gradient_steps`; where None, many to a call of `train`, its best case.
    """
    from stable_baselines3 import DQN
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.utils import polyak_update

    model = DQN(
        "MlpPolicy",
        Spaces(),
        learning_rate=RATE,
        buffer_size=CAPACITY,
        batch_size=BATCH,
        gamma=GAMMA,
        target_update_interval=TARGET,
        max_grad_norm=CLIP,
        policy_kwargs={"net_arch": HIDDEN},
        device="cpu",
    )
    model.set_logger(Logger(None, []))
    _fill_sb3(model.replay_buffer, data)
    done = 0

    def update(count: int) -> None:
        nonlocal done
        while count:
            stretch = min(count, TARGET - done % TARGET, at_once or count)
            model.train(stretch, BATCH)
            done, count = done + stretch, count - stretch
            if done % TARGET == 0:  # as `_on_step` has it
                polyak_update(model.q_net.parameters(), model.q_net_target.parameters(), 1.0)

    return update, repeated(lambda: model.replay_buffer.sample(BATCH))


def _fill_sb3(buffer: Any, data: Columns) -> None:
    buffer.observations[:, 0], buffer.next_observations[:, 0] = data["state"], data["next_state"]
    buffer.actions[:, 0, 0], buffer.rewards[:, 0] = data["action"], data["reward"]
    buffer.dones[:, 0], buffer.full = data["terminated"], True


def cleanrl(data: Columns) -> Jobs:
    """The loop of CleanRL's dqn.py (MIT, github.com/vwxyzjn/cleanrl), with its replay: SB3's."""
    from stable_baselines3.common.buffers import ReplayBuffer

    space = Spaces()
    rb = ReplayBuffer(CAPACITY, space.observation_space, space.action_space, "cpu")
    _fill_sb3(rb, data)
    q_network, target_network = network(), network()
    optimizer = torch.optim.Adam(q_network.parameters(), lr=RATE)
    target_network.load_state_dict(q_network.state_dict())
    step = 0

    def update() -> None:
        nonlocal step
        step += 1
        batch = rb.sample(BATCH)
        with torch.no_grad():
            target_max, _ = target_network(batch.next_observations).max(dim=1)
            td_target = batch.rewards.flatten() + GAMMA * target_max * (1 - batch.dones.flatten())
        old_val = q_network(batch.observations).gather(1, batch.actions).squeeze()
        loss = nn.functional.mse_loss(td_target, old_val)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % TARGET == 0:
            for target, online in zip(
                target_network.parameters(), q_network.parameters(), strict=True
            ):
                target.data.copy_(online.data)

    return repeated(update), repeated(lambda: rb.sample(BATCH))


def d3rlpy(data: Columns) -> Jobs:
    """`DQNConfig(...).create()` on an `MDPDataset`."""
    import d3rlpy as library

    dataset = library.dataset.MDPDataset(
        data["state"],
        data["action"][:, None],
        data["reward"][:, None],
        data["terminated"].astype(np.float32),
        action_space=library.ActionSpace.DISCRETE,
        action_size=ACTIONS,
    )
    algorithm = library.algos.DQNConfig(
        batch_size=BATCH,
        learning_rate=RATE,
        gamma=GAMMA,
        target_update_interval=TARGET,
        encoder_factory=library.models.VectorEncoderFactory(HIDDEN),
    ).create(device="cpu:0")
    algorithm.build_with_dataset(dataset)
    return (
        repeated(lambda: algorithm.update(dataset.sample_transition_batch(BATCH))),
        repeated(lambda: dataset.sample_transition_batch(BATCH)),
    )


def tianshou(data: Columns) -> Jobs:
    """`DQN(policy=DiscreteQLearningPolicy(...))` on a `ReplayBuffer`."""
    from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Batch, ReplayBuffer
    from tianshou.utils.net.common import Net
    from tianshou.utils.torch_utils import policy_within_training_step

    space = Spaces()
    policy = DiscreteQLearningPolicy(
        model=Net(state_shape=STATES, action_shape=ACTIONS, hidden_sizes=HIDDEN),
        action_space=space.action_space,
        observation_space=space.observation_space,
    )
    algorithm = DQN(
        policy=policy,
        optim=AdamOptimizerFactory(lr=RATE),
        gamma=GAMMA,
        target_update_freq=TARGET,
        is_double=False,
    )
    buffer = ReplayBuffer(CAPACITY)
    for row in range(CAPACITY):
        buffer.add(
            Batch(
                obs=data["state"][row],
                act=data["action"][row],
                rew=data["reward"][row],
                terminated=data["terminated"][row],
                truncated=False,
                obs_next=data["next_state"][row],
                info={},
            )
        )

    def update(count: int) -> None:
        with policy_within_training_step(policy):
            for _ in range(count):
                algorithm.update(buffer, BATCH)

    return update, repeated(lambda: buffer.sample(BATCH))


def torchrl(data: Columns) -> Jobs:
    """`DQNLoss` with `HardUpdate`, as its DQN example; a `TensorDictReplayBuffer`."""
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.modules import QValueActor
    from torchrl.objectives import DQNLoss, HardUpdate

    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(CAPACITY), batch_size=BATCH)
    rows = {name: torch.from_numpy(column) for name, column in data.items()}
    terminated = rows["terminated"][:, None]
    buffer.extend(
        TensorDict(
            {
                "observation": rows["state"],
                "action": rows["action"],
                "next": {
                    "observation": rows["next_state"],
                    "reward": rows["reward"][:, None],
                    "done": terminated,
                    "terminated": terminated,
                },
            },
            [CAPACITY],
        )
    )
    module = TensorDictModule(network(), in_keys=["observation"], out_keys=["action_value"])
    actor = QValueActor(module, in_keys=["observation"], action_space="categorical")
    loss_module = DQNLoss(
        actor, loss_function="l2", delay_value=True, double_dqn=False, action_space="categorical"
    )
    loss_module.make_value_estimator(gamma=GAMMA)
    updater = HardUpdate(loss_module, value_network_update_interval=TARGET)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=RATE)

    def update() -> None:
        loss = loss_module(buffer.sample())["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(loss_module.parameters()), max_norm=CLIP)
        optimizer.step()
        optimizer.zero_grad()
        updater.step()

    return repeated(update), repeated(buffer.sample)


CONTENDERS: dict[str, tuple[str, Callable[[Columns], Jobs]]] = {
    "ours": ("torch", ours),
    "floor": ("torch", floor),
    "Stable-Baselines3": ("stable-baselines3", stable_baselines3),
    "CleanRL's loop": ("stable-baselines3", cleanrl),
    "d3rlpy": ("d3rlpy", d3rlpy),
    "Tianshou": ("tianshou", tianshou),
    "TorchRL": ("torchrl", torchrl),
    "ours, 1 a call": ("torch", partial(ours, at_once=1)),
    "SB3, 1 a call": ("stable-baselines3", partial(stable_baselines3, at_once=1)),
}
"""Name -> (the distribution that it needs, what sets it up)."""
