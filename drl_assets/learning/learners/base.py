"""The algorithm interface: a frozen config creates the algorithm, the algorithm fits a policy.

As in d3rlpy, hyper-parameters are a frozen dataclass that creates its learner, and every learner
has the same few methods, so trainer, gates, checkpoints and CLI never ask which one it is. A new
learner is a module with two classes, an `AlgorithmConfig` and an `Algorithm`, and one line in
`registry.ALGORITHMS`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from drl_assets.learning.data import trajectories
from drl_assets.learning.data.episodes import Episodes
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.learners.networks import QFunction, choose_device
from drl_core.policy.reward import CostTable
from drl_core.settings import Learning

if TYPE_CHECKING:
    from drl_assets.learning.learners.checkpoint import Checkpoint

Progress = Callable[[int, int, str], None]
"""Progress callback: (steps done, steps in all, a short text)."""


@dataclass(frozen=True)
class TrainingTask:
    """What an algorithm is created for."""

    episodes: Episodes
    """New labelled episodes only."""
    learning: Learning
    costs: CostTable
    parent: "Checkpoint | None" = None
    """The champion to go on from (warm start), of the same algorithm; its replay stands for every
    episode before the new ones."""

    @property
    def device(self) -> torch.device:
        return choose_device(self.learning.device)

    @property
    def trajectories(self) -> Columns:
        """Rows of the new episodes with hindsight rewards, see `trajectories.rows_of`."""
        before = self.parent.training_episodes if self.parent else 0
        rng = np.random.default_rng([self.learning.seed, before])
        return trajectories.rows_of(self.episodes, rng, self.costs)


class DataclassInstance(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class AlgorithmConfig(DataclassInstance, Protocol):
    """Hyper-parameters of an algorithm: a frozen dataclass that creates it."""

    title: ClassVar[str]
    """What to call it in a sentence."""
    replay_columns: ClassVar[Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]]
    """Name -> (shape of one row's entry, dtype) of the replay that its checkpoints carry."""
    steps_setting: ClassVar[str]
    """The field of `settings.Learning` that `drl train --steps` sets."""
    summary: ClassVar[Sequence[str]]
    """Hyper-parameters of a checkpoint that `drl train --json` prints."""
    inapplicable_gates: ClassVar[frozenset[str]]
    """Release gates that cannot judge its policies; they warn instead of refusing."""
    is_baseline: ClassVar[bool]
    """Whether it is itself a baseline, so that the report's DQN is not trained beside it."""

    @property
    def learning_rate(self) -> float:
        """Step size of the optimiser."""
        ...

    @property
    def gamma(self) -> float:
        """Discount per window."""
        ...

    @property
    def clip(self) -> float:
        """Bound of the gradient's norm."""
        ...

    @classmethod
    def from_settings(cls, learning: Learning) -> Self:
        """Hyper-parameters as the configuration has them."""
        ...

    def create(self, task: TrainingTask) -> "Algorithm":
        """The algorithm before its first step, warm-started where the task has a parent."""
        ...

    @classmethod
    def build_network(
        cls, hidden_layers: Sequence[int], hyperparameters: Mapping[str, Any]
    ) -> QFunction:
        """A network of a checkpoint's sizes, for its weights to be loaded into."""
        ...

    @classmethod
    def explain(cls, hyperparameters: Mapping[str, Any]) -> str:
        """One sentence: how a checkpoint's hyper-parameters were chosen, and on what evidence."""
        ...


@dataclass(frozen=True)
class FittedPolicy:
    """What an algorithm hands over when it has been fitted."""

    network: QFunction
    """On the CPU."""
    hidden_layers: list[int]
    config: AlgorithmConfig
    """The hyper-parameters that it was fitted with."""
    replay: Columns
    """Columns of `config.replay_columns`: what the next training goes on from."""
    trajectories: Columns
    """Trajectory rows that the supervised baselines are tuned on, see `baselines.tune`."""
    gradient_steps: int
    losses: list[float]
    max_gradient_norm: float
    """Greatest norm of a gradient after clipping."""
    returns: list[float] = field(default_factory=list)
    """Returns of the training episodes, where it plays any."""
    selection: DataclassInstance | None = None
    """How the hyper-parameters were chosen; None where they are fixed."""

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The configuration and how it was chosen, as a checkpoint and a manifest store it."""
        selection = dataclasses.asdict(self.selection) if self.selection is not None else {}
        chosen = {name: value for name, value in selection.items() if value is not None}
        return {**dataclasses.asdict(self.config), **chosen}


class Algorithm(Protocol):
    """A learner at work on one task: fit, network, state (dump) and resume (restore)."""

    @property
    def network(self) -> QFunction:
        """The policy's network as learned so far, on the CPU."""
        ...

    def fit(self, progress: Progress, save: Callable[[], None]) -> None:
        """Train to the end, from wherever the state is.

        Args:
            progress: called as the training goes on.
            save: called after `progress` wherever `dump` is a state to resume from.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        ...

    def dump(self) -> dict[str, Any]:
        """The state as nested tensors, numbers, texts and generators (`save_progress`)."""
        ...

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Bring a newly created algorithm to where `dump` was called, bit for bit."""
        ...

    def result(self) -> FittedPolicy:
        """The policy, after `fit`."""
        ...
