"""Regret on the oracle G2 at equal seconds of processor time: our default preset and SB3's DQN.

Both are given the same 10,000 recorded trajectories. Ours learns from them as `drl train` does,
choosing its regularisation included; what processor time that took is what Stable-Baselines3 then
has, on a Gymnasium environment that replays the same trajectories. Both policies are judged on the
same fresh trajectories against the exact optimum; regret is a share of always-monitor's.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.training.contest import progress
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.gates.oracle_mdps import G2, WINDOWS, Policy
from drl_assets.learning.learners import cross_fitting, fitted_q, model_selection
from drl_core.policy.actions import ACTION_COUNT, TERMINAL
from drl_core.policy.features import FEATURE_COUNT
from drl_core.settings import Learning

Floats = npt.NDArray[np.float32]
RATES = (1e-4, 1e-3)
"""Learning rates of SB3's DQN: its own default, which is the report's too, and a tenfold one."""


class RecordedTrajectories(gymnasium.Env[Floats, np.int64]):
    """Replays an oracle's trajectories; each reset draws one uniformly."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (FEATURE_COUNT,), np.float32)
    action_space = gymnasium.spaces.Discrete(ACTION_COUNT)

    def __init__(self, rows: Columns) -> None:
        self._states: Floats = rows["state"][:, 0]
        self._rewards: Floats = rows["rewards"][:, 0]
        self._last = rows["last"]
        self._row = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Begin a trajectory."""
        super().reset(seed=seed)
        self._row = int(self.np_random.integers(len(self._last) // WINDOWS)) * WINDOWS
        return self._states[self._row].copy(), {}

    def step(self, action: np.int64) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """The action's reward in this window; an action that ends it, or the last window, ends."""
        reward, last = float(self._rewards[self._row, action]), bool(self._last[self._row])
        self._row += not last
        ended = last or int(action) in TERMINAL
        return self._states[self._row].copy(), reward, ended, False, {}


def greedy(network: torch.nn.Module) -> Policy:
    """The policy that is greedy on a network's Q-values."""

    def policy(states: Floats) -> npt.NDArray[np.int64]:
        with torch.no_grad():
            best: npt.NDArray[np.int64] = network(torch.from_numpy(states)).argmax(1).numpy()
        return best

    return policy


def ours(rows: Columns, seed: int) -> Policy:
    """The default preset's policy, from the same calls as `cross_validated_q` makes."""
    learning = Learning(seed=seed, device="cpu")
    rows = dict(rows)
    rows["fold"], validated = cross_fitting.assign_folds(rows, learning.members)
    config = fitted_q.FittedConfig(gradient_steps=learning.gradient_steps, members=learning.members)
    finalists = (
        model_selection.select_finalists(rows, config, learning)[0] if validated else [config]
    )
    found = []
    for one in finalists:
        state = fitted_q.start(one, rows, learning.member_layers, seed, torch.device("cpu"))
        fitted_q.fit(state, rows, one)
        found.append((float(fitted_q.out_of_fold_utility(state, rows, one).mean()), state))
    state = max(found, key=lambda pair: pair[0])[1]
    return greedy(state.network)


def stable_baselines3(rows: Columns, seed: int, rate: float, seconds: float) -> Policy:
    """SB3's DQN after so many seconds of processor time, with the spec's network and sizes."""
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback

    class Until(BaseCallback):  # type: ignore[misc]
        """Stops when the time is spent."""

        def __init__(self, end: float) -> None:
            super().__init__()
            self.end = end

        def _on_step(self) -> bool:
            return time.process_time() < self.end

    def model() -> DQN:
        return DQN(
            "MlpPolicy",
            RecordedTrajectories(rows),
            learning_rate=rate,
            buffer_size=100_000,
            batch_size=64,
            gamma=0.99,
            train_freq=1,
            target_update_interval=1000,
            exploration_final_eps=0.1,
            policy_kwargs={"net_arch": [256, 256]},
            seed=seed,
            device="cpu",
        )

    began = time.process_time()
    model().learn(600)  # how fast it is, for its exploration schedule
    steps = int(seconds / (time.process_time() - began) * 600)
    learner = model()
    learner.learn(2 * steps, callback=Until(time.process_time() + seconds))
    return greedy(learner.q_net)


@dataclasses.dataclass(frozen=True)
class Line:
    """A learner's regrets, as shares of always-monitor's."""

    name: str
    seconds: list[float]
    """Of processor time, of each seed."""
    shares: list[float]

    def __str__(self) -> str:
        shares = " ".join(f"{share:.3f}" for share in self.shares)
        return (
            f"{self.name:<28}{np.mean(self.seconds):>8.0f}{np.mean(self.shares):>9.3f}   {shares}"
        )


def compare(seeds: int, trajectories: int, with_sb3: bool) -> list[Line]:
    """Train each learner with each seed, one thread; progress is shown on a terminal.

    Args:
        seeds: number of seeds, each with trajectories of its own.
        trajectories: recorded ones.
        with_sb3: whether Stable-Baselines3 is installed.
    """
    torch.set_num_threads(1)
    lines = [Line("ours (default preset)", [], [])]
    lines += [Line(f"SB3's DQN, lr {rate:g}", [], []) for rate in RATES if with_sb3]

    def judge(line: Line, seed: int, train: Callable[[], Policy]) -> float:
        progress(f"regret, seed {seed + 1} of {seeds}: {line.name}")
        began = time.process_time()
        policy = train()
        line.seconds.append(time.process_time() - began)
        line.shares.append(G2.regret(policy).share)
        return line.seconds[-1]

    for seed in range(seeds):
        rows = G2.sample(trajectories, seed)
        spent = judge(lines[0], seed, partial(ours, rows, seed))
        for line, rate in zip(lines[1:], RATES, strict=False):
            judge(line, seed, partial(stable_baselines3, rows, seed, rate, spent))
    progress("")
    return lines
