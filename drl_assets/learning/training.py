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

from drl_assets.learning import baselines, dqn, evaluation, fitted, trajectories
from drl_assets.learning import checkpoint as checkpoints
from drl_assets.learning.checkpoint import Checkpoint
from drl_assets.learning.environment import ContainmentEnv
from drl_assets.learning.episodes import Episodes, from_experiences
from drl_assets.learning.network import QNetwork, choose_device, seeded_network
from drl_assets.learning.replay import Columns, ReplayBuffer
from drl_core import reward
from drl_core.reward import CostTable
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
    if parent is not None and not continues(parent, learning):
        raise ValueError(f"preset: {parent.version} was trained as {parent.preset!r}")
    torch.set_num_threads(1)  # two are slower for a network of this size
    device = choose_device(learning.device)
    network = (
        parent.network()
        if parent is not None and parent.hidden_layers == learning.hidden_layers
        else seeded_network(learning.hidden_layers, learning.seed)
    )
    learn = _learn_report if learning.preset == "report" else _learn_default
    learned = learn(episodes, learning, costs, network, parent, device, progress, progress_path)
    if progress_path is not None:
        progress_path.unlink(missing_ok=True)
    policy = evaluation.network_policy(learned["network"])
    return Checkpoint(
        preset=learning.preset,
        seed=learning.seed,
        hidden_layers=list(learning.hidden_layers),
        weights={k: v.detach().cpu() for k, v in learned.pop("network").state_dict().items()},
        costs_version=costs.version,
        training_date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        training_episodes=len(episodes) + (parent.training_episodes if parent else 0),
        final_average_reward=float(evaluation.simulate(policy, episodes, costs).returns.mean()),
        batches=[*(parent.batches if parent else []), *(batches or [])],
        parent_version=parent.version if parent else None,
        baselines=baselines.tune(
            trajectories.rows_of(episodes, np.random.default_rng(0), costs, 0), learning.seed
        ),
        **learned,
    )


def continues(parent: Checkpoint, learning: Learning) -> bool:
    """Whether training can go on from a checkpoint: another preset keeps another replay."""
    return parent.preset == learning.preset


def _learn_default(
    episodes: Episodes,
    learning: Learning,
    costs: CostTable,
    network: QNetwork,
    parent: Checkpoint | None,
    device: torch.device,
    progress: Progress,
    progress_path: Path | None,
) -> dict[str, Any]:
    config = fitted.FittedConfig(gradient_steps=learning.gradient_steps)
    new = trajectories.rows_of(
        _as_many_as_fit(episodes, learning, config),
        np.random.default_rng(learning.seed),
        costs,
        config.isolation_trajectories,
    )
    replay = ReplayBuffer(trajectories.ROW_COLUMNS, learning.replay_capacity)
    if parent is not None:
        replay.add(parent.replay)
    replay.add(new)
    rows = replay.snapshot()
    rows["last"][-1] = True
    state = fitted.start(config, network, learning.seed, device)
    mark = checkpoints.fingerprint(
        config, learning, costs, rows, parent.version if parent else None
    )
    if progress_path is not None and (saved := checkpoints.load_progress(progress_path, mark)):
        fitted.restore(state, saved)

    def refresh(state: fitted.FittedState) -> None:
        progress(state.step, config.gradient_steps, f"loss {state.losses[-1]:.4f}")
        if progress_path is not None:
            checkpoints.save_progress(progress_path, mark, fitted.dump(state))

    fitted.fit(state, rows, config, device, refresh)
    return {
        "network": state.averaged.cpu(),
        "replay": rows,
        "hyperparameters": dataclasses.asdict(config),
        "gradient_steps": state.step,
        "losses": state.losses,
        "returns": [],
        "max_gradient_norm": state.max_gradient_norm,
    }


def _as_many_as_fit(
    episodes: Episodes, learning: Learning, config: fitted.FittedConfig
) -> Episodes:
    """Whole episodes, drawn at random, so that their trajectories fit into the replay."""
    room = learning.replay_capacity // (1 + config.isolation_trajectories)
    if episodes.offsets[-1] <= room:
        return episodes
    order = np.random.default_rng(learning.seed).permutation(len(episodes))
    fits = np.cumsum(episodes.lengths[order]) <= room
    return episodes.select(order[: max(int(fits.sum()), 1)])


def _learn_report(
    episodes: Episodes,
    learning: Learning,
    costs: CostTable,
    network: QNetwork,
    parent: Checkpoint | None,
    device: torch.device,
    progress: Progress,
    progress_path: Path | None,
) -> dict[str, Any]:
    config = dqn.DQNConfig(episodes=learning.episodes, replay_capacity=learning.replay_capacity)
    state = dqn.start(config, network, learning.seed, device)
    past: Columns = parent.replay if parent is not None else {}
    if past:
        state.replay.add(past)
    mark = checkpoints.fingerprint(
        config,
        learning,
        costs,
        {
            "windows": episodes.windows,
            "offsets": episodes.offsets,
            "carry": episodes.carry,
            "episode_damage": episodes.damage,
            "malicious": episodes.malicious,
            "ended": episodes.ended,
            **past,
        },
        parent.version if parent else None,
    )
    if progress_path is not None and (saved := checkpoints.load_progress(progress_path, mark)):
        dqn.restore(state, saved)

    def episode(state: dqn.DQNState) -> None:
        recent = float(np.mean(state.returns[-10:]))
        progress(state.episode, config.episodes, f"return {recent:.2f}")
        if progress_path is not None and state.episode % config.checkpoint_episodes == 0:
            checkpoints.save_progress(progress_path, mark, dqn.dump(state))

    dqn.fit(state, ContainmentEnv(episodes, costs), config, device, episode)
    return {
        "network": state.network.cpu(),
        "replay": state.replay.snapshot(),
        "hyperparameters": dataclasses.asdict(config),
        "gradient_steps": state.gradient_steps,
        "losses": state.losses,
        "returns": state.returns,
        "max_gradient_norm": state.max_gradient_norm,
    }
