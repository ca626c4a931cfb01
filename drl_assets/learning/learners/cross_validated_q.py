"""The default learner: fitted Q whose regularisation is chosen by cross-validation over sessions.

One fit is `fitted_q`; this is the algorithm around it. The replay is merged with the new
trajectories (`replay_retention`), each session is given a fold (`cross_fitting`), candidates are
tried (`model_selection`), the finalists are fitted in full, and the one of higher utility on
left-out sessions is the policy. A warm start keeps the champion's choice and goes on from its
weights.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from drl_assets.learning.data import replay_retention, trajectories
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.learners import cross_fitting, fitted_q, model_selection
from drl_assets.learning.learners.base import FittedPolicy, Progress, TrainingTask
from drl_assets.learning.learners.fitted_q import FittedConfig, FittedState
from drl_assets.learning.learners.model_selection import ModelSelection
from drl_assets.learning.learners.networks import PosteriorQNetwork
from drl_core.settings import Learning

if TYPE_CHECKING:
    from drl_assets.learning.learners.checkpoint import Checkpoint


@dataclass(frozen=True)
class CrossValidatedQConfig(FittedConfig):
    """Hyper-parameters of each fit, and the algorithm that they belong to."""

    title: ClassVar[str] = "full-information fitted Q"
    replay_columns: ClassVar[Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]] = (
        trajectories.ROW_COLUMNS
    )
    steps_setting: ClassVar[str] = "gradient_steps"
    summary: ClassVar[Sequence[str]] = (
        "validated",
        "input_noise",
        "weight_decay",
        "left_out_utility",
        "validation",
    )
    inapplicable_gates: ClassVar[frozenset[str]] = frozenset()
    is_baseline: ClassVar[bool] = False

    @classmethod
    def from_settings(cls, learning: Learning) -> Self:
        """Those of a training from scratch."""
        return cls(gradient_steps=learning.gradient_steps, members=learning.members)

    def create(self, task: TrainingTask) -> "CrossValidatedQ":
        """The algorithm before its first step."""
        return CrossValidatedQ(self, task)

    @classmethod
    def build_network(
        cls, hidden_layers: Sequence[int], hyperparameters: Mapping[str, Any]
    ) -> PosteriorQNetwork:
        """An ensemble of a checkpoint's sizes."""
        return PosteriorQNetwork(hidden_layers, hyperparameters["members"])

    @classmethod
    def explain(cls, hyperparameters: Mapping[str, Any]) -> str:
        """What was chosen, and on what evidence."""
        return model_selection.explain(hyperparameters)


class CrossValidatedQ:
    """Model selection, then a full fit of each finalist."""

    def __init__(self, config: CrossValidatedQConfig, task: TrainingTask) -> None:
        """Merge the champion's replay with the new trajectories, and decide on the warm start."""
        learning, parent = task.learning, task.parent
        rows, recent = replay_retention.merge(
            parent.replay if parent else None, task.trajectories, learning.replay_capacity
        )
        known = rows["fold"]
        rows["fold"], validated = cross_fitting.assign_folds(rows, learning.members)
        moved = bool(((known >= 0) & (known != rows["fold"])).any())
        if moved or (parent and not _warm_starts(parent, learning, rows, validated)):
            parent = None  # its replay is in the rows; its weights and choices are not taken
        self._learning, self._device = learning, task.device
        self._rows, self._recent = rows, recent if parent else None
        self._champion: PosteriorQNetwork | None = None
        self._config = config
        self._selection = ModelSelection(validated, len(rows["last"]))
        if parent is not None:
            self._config, self._selection = _of_parent(config, parent, learning)
            self._champion = PosteriorQNetwork(learning.member_layers, learning.members)
            self._champion.load_state_dict(parent.weights)
        self._to_try = len(model_selection.CANDIDATES) if validated and parent is None else 0
        self._finalists: list[CrossValidatedQConfig] = []
        self._fits: list[FittedState] = []

    def fit(self, progress: Progress, save: Callable[[], None]) -> None:
        """Try the candidates, train the finalists in full, keep the better one."""
        before = self._to_try * self._learning.validation_steps
        steps = self._config.gradient_steps
        total = before + steps * (model_selection.FINALISTS if self._to_try else 1)
        if not self._finalists:
            self._select(lambda done, each: progress(done * each, total, "trials"))
        for part, config in enumerate(self._finalists):

            def refreshed(state: FittedState, done: int = before + part * steps) -> None:
                progress(done + state.step, total, f"loss {state.losses[-1]:.4f}")
                save()

            if part == len(self._fits):
                self._fits.append(self._start(config))
            fitted_q.fit(self._fits[part], self._rows, config, refreshed, self._recent)
        if self._selection.validated:
            pairs = zip(self._fits, self._finalists, strict=True)
            worth = [float(fitted_q.out_of_fold_utility(s, self._rows, c).mean()) for s, c in pairs]
            self._selection = dataclasses.replace(
                self._selection,
                left_out_utility=max(worth),
                finalists_left_out_utility=worth,
            )

    def _select(self, on_candidate: Callable[[int, int], None]) -> None:
        """Choose the finalists: by cross-validation, or the one configuration there is."""
        if not self._to_try:
            self._finalists = [self._config]
            return
        self._finalists, trials = model_selection.select_finalists(
            self._rows, self._config, self._learning, on_candidate
        )
        self._selection = dataclasses.replace(self._selection, validation=trials)

    def _start(self, config: CrossValidatedQConfig) -> FittedState:
        learning = self._learning
        return fitted_q.start(
            config, self._rows, learning.member_layers, learning.seed, self._device, self._champion
        )

    @property
    def _best(self) -> int:
        """The finalist of highest utility on left-out sessions, the first without any."""
        return int(np.argmax(self._selection.finalists_left_out_utility or [0.0]))

    @property
    def network(self) -> PosteriorQNetwork:
        """The averaged ensemble of the best finalist, on the CPU."""
        return self._fits[self._best].network

    def dump(self) -> dict[str, Any]:
        """The finalists, what they were chosen by, and the state of each that has begun."""
        return {
            "finalists": [dataclasses.asdict(one) for one in self._finalists],
            "validation": self._selection.validation,
            "fits": [fitted_q.dump(state) for state in self._fits],
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on with the finalists of `dump`, each from where it was."""
        self._finalists = [CrossValidatedQConfig(**one) for one in saved["finalists"]]
        self._selection = dataclasses.replace(self._selection, validation=saved["validation"])
        self._fits = [self._start(one) for one in self._finalists[: len(saved["fits"])]]
        for state, of in zip(self._fits, saved["fits"], strict=True):
            fitted_q.restore(state, of)

    def result(self) -> FittedPolicy:
        """The best finalist, with the replay that the next training goes on from."""
        state = self._fits[self._best]
        return FittedPolicy(
            network=state.network,
            hidden_layers=list(self._learning.member_layers),
            config=self._finalists[self._best],
            replay=self._rows,
            trajectories=self._rows,
            gradient_steps=state.step,
            losses=state.losses,
            max_gradient_norm=state.max_gradient_norm,
            selection=self._selection,
        )


def _warm_starts(parent: "Checkpoint", learning: Learning, rows: Columns, validated: bool) -> bool:
    """Whether the parent's weights are a start: else learning begins anew, from the whole replay.

    That is so where the sizes changed, where sessions can be left out for the first time, and where
    there is twice as much as when the regularisation was chosen.
    """
    return (
        parent.hidden_layers == learning.member_layers
        and parent.hyperparameters["members"] == learning.members
        and parent.hyperparameters["validated"] == validated
        and len(rows["last"]) < 2 * parent.hyperparameters["chosen_on_rows"]
    )


def _of_parent(
    config: CrossValidatedQConfig, parent: "Checkpoint", learning: Learning
) -> tuple[CrossValidatedQConfig, ModelSelection]:
    """The hyper-parameters of a warm start, and how they were once chosen."""
    known = {one.name: parent.hyperparameters[one.name] for one in dataclasses.fields(config)}
    known["gradient_steps"] = learning.incremental_steps
    chosen = ("validated", "chosen_on_rows", "validation")
    selection = ModelSelection(**{name: parent.hyperparameters[name] for name in chosen})
    return CrossValidatedQConfig(**known), selection
