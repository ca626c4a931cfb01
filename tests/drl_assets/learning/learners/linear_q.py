"""A third learner, as small as one can be: linear fitted Q on the trajectories as recorded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drl_assets.learning.data import trajectories
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.learners.base import FittedPolicy, Progress, TrainingTask
from drl_assets.learning.learners.networks import QNetwork, seeded_network
from drl_core.policy.actions import Action
from drl_core.settings import Learning

SAVE_EVERY = 10


@dataclass(frozen=True)
class LinearQConfig:
    """Hyper-parameters."""

    title: ClassVar[str] = "linear fitted Q"
    replay_columns: ClassVar[Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]] = (
        trajectories.ROW_COLUMNS
    )
    steps_setting: ClassVar[str] = "gradient_steps"
    summary: ClassVar[Sequence[str]] = ("learning_rate",)
    inapplicable_gates: ClassVar[frozenset[str]] = frozenset({"labels_consistent", "oracle_regret"})
    is_baseline: ClassVar[bool] = False

    gradient_steps: int = 100
    batch_size: int = 64
    learning_rate: float = 0.05
    gamma: float = 0.99
    clip: float = 10.0

    @classmethod
    def from_settings(cls, learning: Learning) -> "LinearQConfig":
        return cls(gradient_steps=learning.gradient_steps)

    def create(self, task: TrainingTask) -> "LinearQ":
        return LinearQ(self, task)

    @classmethod
    def build_network(
        cls, hidden_layers: Sequence[int], hyperparameters: Mapping[str, Any]
    ) -> QNetwork:
        return QNetwork(hidden_layers)

    @classmethod
    def explain(cls, hyperparameters: Mapping[str, Any]) -> str:
        return "nothing was chosen"


class LinearQ:
    """Stochastic gradient descent towards one-step TD targets."""

    def __init__(self, config: LinearQConfig, task: TrainingTask) -> None:
        self.config, self.rows = config, task.trajectories
        self.policy = seeded_network([], task.learning.seed)
        if task.parent is not None:
            self.policy.load_state_dict(task.parent.weights)
            past = task.parent.replay
            self.rows = {n: np.concatenate((past[n], self.rows[n])) for n in self.rows}
        self.rng = np.random.default_rng(task.learning.seed)
        self.losses: list[float] = []
        self.norm = 0.0

    @property
    def network(self) -> QNetwork:
        return self.policy

    def fit(self, progress: Progress, save: Callable[[], None]) -> None:
        recorded = trajectories.as_recorded(self.rows)
        while len(self.losses) < self.config.gradient_steps:
            self.update(recorded)
            done = len(self.losses)
            progress(done, self.config.gradient_steps, f"loss {self.losses[-1]:.4f}")
            if done % SAVE_EVERY == 0:
                save()

    def update(self, rows: Columns) -> None:
        chosen = self.rng.integers(len(rows["last"]), size=self.config.batch_size)
        target = self.td_target(rows, chosen)
        q_values = self.policy(torch.from_numpy(rows["state"][chosen]))
        error = torch.where(target.isfinite(), q_values - target, 0.0)
        loss = error.square().mean()
        gradients = torch.autograd.grad(loss, list(self.policy.parameters()))
        norm = float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])))
        scale = min(1.0, self.config.clip / max(norm, 1e-9))
        with torch.no_grad():
            for parameter, gradient in zip(self.policy.parameters(), gradients, strict=True):
                parameter -= self.config.learning_rate * scale * gradient
        self.losses.append(loss.item())
        self.norm = max(self.norm, norm * scale)

    @torch.no_grad()
    def td_target(self, rows: Columns, chosen: npt.NDArray[np.int64]) -> Tensor:
        target = torch.from_numpy(rows["rewards"][chosen])
        following = np.minimum(chosen + 1, len(rows["last"]) - 1)
        next_q_values = self.policy(torch.from_numpy(rows["state"][following])).max(dim=1).values
        next_q_values[torch.from_numpy(rows["last"][chosen])] = 0.0
        target[:, Action.CONTINUE_MONITORING] += self.config.gamma * next_q_values
        return target

    def dump(self) -> dict[str, Any]:
        kept = {"losses": self.losses, "norm": self.norm, "rng": self.rng}
        return {**kept, "weights": dict(self.policy.state_dict())}

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(saved["weights"])
        self.losses, self.norm, self.rng = saved["losses"], saved["norm"], saved["rng"]

    def result(self) -> FittedPolicy:
        return FittedPolicy(
            network=self.policy,
            hidden_layers=[],
            config=self.config,
            replay=self.rows,
            trajectories=self.rows,
            gradient_steps=len(self.losses),
            losses=self.losses,
            max_gradient_norm=self.norm,
        )
