"""Training as one call: experiences and perhaps a champion in, a checkpoint out.

`train` is the same procedure for every registered algorithm: create it from its configuration,
warm-started from the champion, restore what an interrupted run has saved, fit, and tune the
baselines on the same episodes. `drl train` and the asset `trained_checkpoint` are thin callers.
"""

import datetime as dt
from pathlib import Path
from typing import Any

import polars as pl
import torch

from drl_assets.learning.data.episodes import from_experiences
from drl_assets.learning.evaluation import baselines, evaluate, policies
from drl_assets.learning.learners import checkpoint as checkpoints
from drl_assets.learning.learners import registry
from drl_assets.learning.learners.base import AlgorithmConfig, FittedPolicy, Progress, TrainingTask
from drl_assets.learning.learners.checkpoint import Checkpoint
from drl_core.policy import reward
from drl_core.policy.reward import CostTable
from drl_core.settings import Learning


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
        learning: preset (the algorithm's name), seed, steps and sizes.
        costs: the cost table.
        parent: the checkpoint to go on from; its replay stands for everything before.
        batches: the new batches' keys, for lineage.
        progress: called after every stretch of training.
        progress_path: where an unfinished run is kept and resumed from, bit for bit.
        tune_baselines: whether the checkpoint shall carry baselines tuned on the same rows.

    Raises:
        NothingToLearn: no labelled episode.
        UnknownAlgorithmError: no algorithm has the preset's name.
        ValueError: the parent is of another preset (see `continues`).
        FloatingPointError: the loss is not finite.
    """
    config = registry.algorithm(learning.preset).from_settings(learning)
    episodes = from_experiences(experiences)
    if not len(episodes):
        raise NothingToLearn(
            f"none of the {episodes.unlabelled} episodes has a label: set is_malicious in the "
            "telemetry, or import with --label"
        )
    if parent is not None and not continues(parent, learning, costs):
        raise ValueError(f"parent: {parent.version} was trained with other costs or another preset")
    torch.set_num_threads(1)  # two are slower for a network of this size
    task = TrainingTask(episodes, learning, costs, parent)
    policy = _fit(config, task, progress, progress_path)
    tuned = _tuned_baselines(policy, task) if tune_baselines else {}
    return _checkpoint(policy, task, batches or [], tuned)


def continues(
    parent: Checkpoint, learning: Learning, costs: CostTable = reward.DEFAULT_COSTS
) -> bool:
    """Whether a checkpoint's replay is of this algorithm, these costs and this form."""
    algorithm = registry.algorithm(learning.preset)
    return (
        registry.ALGORITHMS.get(parent.preset) is algorithm
        and parent.costs_version == costs.version
        and parent.replay.keys() == algorithm.replay_columns.keys()
    )


def _fit(
    config: AlgorithmConfig, task: TrainingTask, progress: Progress, path: Path | None
) -> FittedPolicy:
    """Create the algorithm, resume it where it was interrupted, and train it to the end."""
    algorithm = config.create(task)
    if path is None:
        algorithm.fit(progress, lambda: None)
        return algorithm.result()
    mark = checkpoints.fingerprint(config, task)
    saved = checkpoints.load_progress(path, mark)
    if saved is not None:
        algorithm.restore(saved)
    algorithm.fit(progress, lambda: checkpoints.save_progress(path, mark, algorithm.dump()))
    path.unlink(missing_ok=True)
    return algorithm.result()


def _checkpoint(
    policy: FittedPolicy, task: TrainingTask, batches: list[str], tuned: dict[str, Any]
) -> Checkpoint:
    """The policy with its lineage, and its mean return on the episodes that it learned from."""
    learning, costs, parent, episodes = task.learning, task.costs, task.parent, task.episodes
    greedy = policies.network_policy(policy.network)
    returns = evaluate.simulate(greedy, episodes, costs).returns
    return Checkpoint(
        preset=learning.preset,
        seed=learning.seed,
        hidden_layers=policy.hidden_layers,
        weights={k: v.detach().cpu() for k, v in policy.network.state_dict().items()},
        replay=policy.replay,
        hyperparameters=policy.hyperparameters,
        costs_version=costs.version,
        training_date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        training_episodes=len(episodes) + (parent.training_episodes if parent else 0),
        gradient_steps=policy.gradient_steps,
        losses=policy.losses,
        returns=policy.returns,
        final_average_reward=float(returns.mean()),
        max_gradient_norm=policy.max_gradient_norm,
        batches=[*(parent.batches if parent else []), *batches],
        parent_version=parent.version if parent else None,
        baselines=tuned,
    )


def _tuned_baselines(policy: FittedPolicy, task: TrainingTask) -> dict[str, Any]:
    """The baselines, tuned on the same rows; the report's DQN by a training from scratch."""
    known = task.parent.baselines if task.parent else {}
    tuned = baselines.tune(policy.trajectories, task.learning.seed, known)
    if not policy.config.is_baseline:
        tuned["report_dqn"] = known.get("report_dqn") or baselines.report_dqn(
            task.episodes, task.learning, task.costs
        )
    return tuned
