"""Training as one call: experiences and perhaps a champion in, a checkpoint out.

`train` warm-starts from the champion, learns from the new episodes plus the champion's replay
(never from earlier batches again), saves its progress, and tunes the baselines on the same
episodes. `drl train` and the asset `trained_checkpoint` are thin callers of it.
"""

import dataclasses
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from drl_assets.learning.data import replay_retention, trajectories
from drl_assets.learning.data.environment import ContainmentEnv
from drl_assets.learning.data.episodes import Episodes, from_experiences
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.evaluation import baselines, evaluate
from drl_assets.learning.learners import checkpoint as checkpoints
from drl_assets.learning.learners import cross_fitting, dqn, fitted_q, model_selection
from drl_assets.learning.learners.checkpoint import Checkpoint
from drl_assets.learning.learners.networks import (
    PosteriorQNetwork,
    QFunction,
    choose_device,
    seeded_network,
)
from drl_core.policy import reward
from drl_core.policy.reward import CostTable
from drl_core.settings import Learning

Progress = Callable[[int, int, str], None]
"""(steps done, steps in all, a short text)."""


class NothingToLearn(ValueError):  # noqa: N818 - it says what is the case
    """There is no labelled episode among the experiences."""


def train(
    experiences: pl.DataFrame,
    learning: Learning,
    *,
    costs: CostTable = reward.DEFAULT_COSTS,
    parent: Checkpoint | None = None,
    batches: list[str] | None = None,
    progress: Progress = lambda done, total, text: None,
    progress_path: Path | None = None,
    tune_baselines: bool = True,
) -> Checkpoint:
    """Learn a policy.

    Args:
        experiences: rows of new batches only, held-out sessions already taken away.
        learning: preset, seed, steps and sizes.
        costs: the cost table.
        parent: the checkpoint to go on from; its replay stands for everything before.
        batches: the new batches' keys, for lineage.
        progress: told after every stretch of training.
        progress_path: where an unfinished run is kept and resumed from, bit for bit.
        tune_baselines: whether the checkpoint shall carry baselines tuned on the same rows.

    Raises:
        NothingToLearn: no labelled episode.
        ValueError: the parent is of another preset (see `continues`).
        FloatingPointError: the loss is not finite.
    """
    episodes = from_experiences(experiences)
    if not len(episodes):
        raise NothingToLearn(
            f"none of the {episodes.unlabelled} episodes has a label: set is_malicious in the "
            "telemetry, or import with --label"
        )
    if parent is not None and not continues(parent, learning, costs):
        raise ValueError(f"parent: {parent.version} was trained with other costs or another preset")
    torch.set_num_threads(1)  # two are slower for a network of this size
    task = _Task(episodes, learning, costs, parent, progress, progress_path)
    learned = (_learn_report if learning.preset == "report" else _learn_default)(task)
    rows = learned.pop("rows")
    task.clear()
    network: QFunction = learned.pop("network")
    returns = evaluate.simulate(evaluate.network_policy(network), episodes, costs).returns
    return Checkpoint(
        preset=learning.preset,
        seed=learning.seed,
        weights={k: v.detach().cpu() for k, v in network.state_dict().items()},
        costs_version=costs.version,
        training_date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        training_episodes=len(episodes) + (parent.training_episodes if parent else 0),
        final_average_reward=float(returns.mean()),
        batches=[*(parent.batches if parent else []), *(batches or [])],
        parent_version=parent.version if parent else None,
        baselines=task.baselines(rows) if tune_baselines else {},
        **learned,
    )


def continues(
    parent: Checkpoint, learning: Learning, costs: CostTable = reward.DEFAULT_COSTS
) -> bool:
    """Whether a checkpoint's replay is of this preset, these costs and this form."""
    columns = trajectories.ROW_COLUMNS if learning.preset == "default" else dqn.TRANSITION_COLUMNS
    return (
        parent.preset == learning.preset
        and parent.costs_version == costs.version
        and parent.replay.keys() == columns.keys()
    )


@dataclasses.dataclass(frozen=True)
class _Task:
    """What a learner is given."""

    episodes: Episodes
    learning: Learning
    costs: CostTable
    parent: Checkpoint | None
    progress: Progress
    progress_path: Path | None

    @property
    def device(self) -> torch.device:
        return choose_device(self.learning.device)

    def mark(self, config: Any, data: Columns) -> str:
        """Names exactly this training, for its unfinished state."""
        ancestor = self.parent.version if self.parent else None
        return checkpoints.fingerprint(config, self.learning, self.costs, data, ancestor)

    def baselines(self, rows: Columns) -> dict[str, Any]:
        """The baselines, tuned on the same rows; the report's DQN by a training from scratch."""
        known = self.parent.baselines if self.parent else {}
        tuned = baselines.tune(rows, self.learning.seed, known)
        if self.learning.preset == "default":
            tuned["report_dqn"] = known.get("report_dqn") or baselines.report_dqn(
                self.episodes, self.learning, self.costs
            )
        return tuned

    @property
    def rows(self) -> Columns:
        """The new episodes as trajectories."""
        before = self.parent.training_episodes if self.parent else 0
        rng = np.random.default_rng([self.learning.seed, before])
        return trajectories.rows_of(self.episodes, rng, self.costs)

    def saved(self, mark: str, part: int = 0) -> dict[str, Any] | None:
        """Progress of exactly this part of this training, None where there is none."""
        path = self._path(part)
        return checkpoints.load_progress(path, f"{mark}-{part}") if path is not None else None

    def save(self, mark: str, state: dict[str, Any], part: int = 0) -> None:
        path = self._path(part)
        if path is not None:
            checkpoints.save_progress(path, f"{mark}-{part}", state)

    def clear(self) -> None:
        """Forget all progress."""
        for part in range(model_selection.FINALISTS):
            path = self._path(part)
            if path is not None:
                path.unlink(missing_ok=True)

    def _path(self, part: int) -> Path | None:
        path = self.progress_path
        return path.with_stem(f"{path.stem}-{part}") if path is not None and part else path


def _learn_default(task: _Task) -> dict[str, Any]:
    """Choose the regularisation, train the finalists in full, keep the better one."""
    learning, parent = task.learning, task.parent
    rows, recent = replay_retention.merge(
        parent.replay if parent else None, task.rows, learning.replay_capacity
    )
    known = rows["fold"]
    rows["fold"], validated = cross_fitting.assign(rows, learning.members)
    moved = bool(((known >= 0) & (known != rows["fold"])).any())
    if moved or (parent and not _goes_on(parent, learning, rows, validated)):
        parent = None  # its replay is in the rows; its weights and choices are not taken
    config, about = _configuration(parent, learning, rows, validated)
    mark = task.mark(config, rows)
    saved = task.saved(mark)
    trials = len(model_selection.CANDIDATES) if validated and parent is None else 0
    before = trials * learning.validation_steps
    total = before + config.gradient_steps * (model_selection.FINALISTS if trials else 1)
    finalists = [config]
    if saved:
        finalists = [fitted_q.FittedConfig(**one) for one in saved["finalists"]]
        about["validation"] = saved["validation"]
    elif trials:
        finalists, about["validation"] = model_selection.choose(
            rows, config, learning, lambda done, steps: task.progress(done * steps, total, "trials")
        )
    choices = {
        "finalists": [dataclasses.asdict(one) for one in finalists],
        "validation": about["validation"],
    }

    def full(part: int) -> fitted_q.FittedState:
        def refreshed(state: fitted_q.FittedState) -> None:
            done = before + part * config.gradient_steps + state.step
            task.progress(done, total, f"loss {state.losses[-1]:.4f}")
            task.save(mark, {**fitted_q.dump(state), **choices}, part)

        champion = None
        if parent:
            champion = PosteriorQNetwork(learning.member_layers, learning.members)
            champion.load_state_dict(parent.weights)
        state = fitted_q.start(
            finalists[part], rows, learning.member_layers, learning.seed, task.device, champion
        )
        if unfinished := task.saved(mark, part):
            fitted_q.restore(state, unfinished)
        fitted_q.fit(state, rows, finalists[part], refreshed, recent if parent else None)
        return state

    states = [full(part) for part in range(len(finalists))]
    best = 0
    if validated:
        pairs = zip(states, finalists, strict=True)
        worth = [float(fitted_q.utility_left_out(s, rows, one).mean()) for s, one in pairs]
        best = int(np.argmax(worth))
        about |= {"left_out_utility": worth[best], "finalists_left_out_utility": worth}
    state = states[best]
    return {
        "network": state.network,
        "hidden_layers": list(learning.member_layers),
        "replay": rows,
        "hyperparameters": {**dataclasses.asdict(finalists[best]), **about},
        "gradient_steps": state.step,
        "losses": state.losses,
        "returns": [],
        "max_gradient_norm": state.max_gradient_norm,
        "rows": rows,
    }


def _goes_on(parent: Checkpoint, learning: Learning, rows: Columns, validated: bool) -> bool:
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


def _configuration(
    parent: Checkpoint | None, learning: Learning, rows: Columns, validated: bool
) -> tuple[fitted_q.FittedConfig, dict[str, Any]]:
    """Hyper-parameters, those of the parent where there is one, and how they were found."""
    if parent is None:
        config = fitted_q.FittedConfig(
            gradient_steps=learning.gradient_steps, members=learning.members
        )
        return config, {
            "validated": validated,
            "chosen_on_rows": len(rows["last"]),
            "validation": [],
        }
    names = [one.name for one in dataclasses.fields(fitted_q.FittedConfig)]
    known = {name: parent.hyperparameters[name] for name in names}
    about = {n: parent.hyperparameters[n] for n in ("validated", "chosen_on_rows", "validation")}
    known["gradient_steps"] = learning.incremental_steps
    return fitted_q.FittedConfig(**known), about


def _learn_report(task: _Task) -> dict[str, Any]:
    learning, parent = task.learning, task.parent
    config = dqn.DQNConfig(episodes=learning.episodes, replay_capacity=learning.replay_capacity)
    network = seeded_network(learning.hidden_layers, learning.seed)
    if parent and parent.hidden_layers == learning.hidden_layers:
        network.load_state_dict(parent.weights)
    state = dqn.start(config, network, learning.seed, task.device)
    past: Columns = parent.replay if parent is not None else {}
    if past:
        state.replay.add(past)
    episodes = task.episodes
    data = {
        "windows": episodes.windows,
        "offsets": episodes.offsets,
        "carry": episodes.carry,
        "episode_damage": episodes.damage,
        "malicious": episodes.malicious,
        "ended": episodes.ended,
    }
    mark = task.mark(config, {**data, **past})
    if saved := task.saved(mark):
        dqn.restore(state, saved)

    def episode(state: dqn.DQNState) -> None:
        recent = float(np.mean(state.returns[-10:]))
        task.progress(state.episode, config.episodes, f"return {recent:.2f}")
        if state.episode % config.checkpoint_episodes == 0:
            task.save(mark, dqn.dump(state))

    dqn.fit(state, ContainmentEnv(episodes, task.costs), config, task.device, episode)
    return {
        "network": state.network.cpu(),
        "hidden_layers": list(learning.hidden_layers),
        "replay": state.replay.snapshot(),
        "hyperparameters": dataclasses.asdict(config),
        "gradient_steps": state.gradient_steps,
        "losses": state.losses,
        "returns": state.returns,
        "max_gradient_norm": state.max_gradient_norm,
        "rows": task.rows,
    }
