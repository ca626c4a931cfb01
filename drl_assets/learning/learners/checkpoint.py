"""Checkpoints: a trained policy with what a warm start needs, and the progress of unfinished runs.

One file holds tensors, numbers and text only, so it loads with `weights_only=True`; it is written
in one rename. A checkpoint carries its replay, hence incremental training reads new batches alone.
"""

import datetime as dt
import hashlib
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.learners import registry
from drl_assets.learning.learners.base import AlgorithmConfig, TrainingTask
from drl_assets.learning.learners.networks import QFunction
from drl_core.files import write_atomically


class CheckpointError(ValueError):
    """A file that is not a checkpoint of this program."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained policy with its past."""

    preset: str
    """Name of the algorithm, see `registry.ALGORITHMS`."""
    seed: int
    hidden_layers: list[int]
    weights: dict[str, torch.Tensor]
    replay: Columns
    hyperparameters: dict[str, Any]
    costs_version: int
    training_date: str
    training_episodes: int
    """Labelled episodes learned from, those of all ancestors included."""
    gradient_steps: int
    """Of this run."""
    losses: list[float]
    returns: list[float]
    """Returns of the training episodes, where the algorithm plays any."""
    final_average_reward: float
    """Mean discounted return of the greedy policy on this run's training episodes."""
    max_gradient_norm: float
    batches: list[str] = field(default_factory=list)
    """Every batch that has been learned from, those of all ancestors included."""
    parent_version: str | None = None
    baselines: dict[str, Any] = field(default_factory=dict)
    """Baselines tuned on the same episodes: see `baselines.tune`."""

    @property
    def version(self) -> str:
        """Date of training and a hash of the weights, such as `20241125_143022_1a2b3c4d`."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            digest.update(self.weights[name].contiguous().numpy().tobytes())
        when = dt.datetime.fromisoformat(self.training_date)
        return f"{when:%Y%m%d_%H%M%S}_{digest.hexdigest()[:8]}"

    @property
    def algorithm(self) -> type[AlgorithmConfig]:
        """What trained it; raises UnknownAlgorithmError where that is not registered."""
        return registry.algorithm(self.preset)

    def network(self) -> QFunction:
        """The policy's network, on the CPU."""
        network = self.algorithm.build_network(self.hidden_layers, self.hyperparameters)
        network.load_state_dict(self.weights)
        return network

    def save(self, path: Path) -> str:
        """Write atomically; returns the file's SHA-256."""
        content = _pack({**vars(self), "replay": _tensors(self.replay), "kind": "checkpoint"})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        return hashlib.sha256(content).hexdigest()


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: not a checkpoint.
        FileNotFoundError: no such file.
    """
    content = _unpack(path.read_bytes(), "checkpoint", path)
    content["replay"] = {name: tensor.numpy() for name, tensor in content["replay"].items()}
    try:
        return Checkpoint(**content)
    except TypeError as cause:
        raise CheckpointError(f"{path}: {cause}") from None


def save_progress(path: Path, fingerprint: str, state: dict[str, Any]) -> None:
    """Save an unfinished training so that a killed run resumes from here.

    Args:
        path: the progress file.
        fingerprint: of the data and settings, see `fingerprint`.
        state: tensors, numbers, texts and random generators, nested in dictionaries and lists.
    """
    content = {"state": _without_generators(state), "fingerprint": fingerprint, "kind": "progress"}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _pack(content))


def load_progress(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The saved progress of exactly this training, None where there is none."""
    if not path.exists():
        return None
    content = _unpack(path.read_bytes(), "progress", path)
    if content["fingerprint"] != fingerprint:
        return None
    state: dict[str, Any] = _with_generators(content["state"])
    return state


def _without_generators(value: Any) -> Any:
    """The same with each generator as {"generator": its state as JSON}."""
    if isinstance(value, np.random.Generator):
        return {"generator": json.dumps(value.bit_generator.state)}
    if isinstance(value, dict):
        return {name: _without_generators(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_generators(one) for one in value]
    return value


def _with_generators(value: Any) -> Any:
    """What `_without_generators` was given."""
    if isinstance(value, dict) and value.keys() == {"generator"}:
        generator = np.random.default_rng()
        generator.bit_generator.state = json.loads(value["generator"])
        return generator
    if isinstance(value, dict):
        return {name: _with_generators(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_generators(one) for one in value]
    return value


def fingerprint(config: AlgorithmConfig, task: TrainingTask) -> str:
    """Identifies a training: same algorithm, settings, costs, episodes and ancestor."""
    parent, episodes = task.parent, task.episodes
    ancestor = (parent.version, parent.batches) if parent else None
    names = (episodes.session, episodes.attack_type)
    settings = [asdict(config), task.learning, task.costs, ancestor, names]
    digest = hashlib.sha256(msgspec.json.encode(settings))
    recorded = ("windows", "offsets", "carry", "damage", "malicious", "ended")
    columns = [getattr(episodes, name) for name in recorded]
    for column in columns + list(parent.replay.values() if parent else ()):
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def _tensors(columns: Columns) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def _pack(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _unpack(raw: bytes, kind: str, path: Path) -> dict[str, Any]:
    try:
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as cause:  # torch raises many types for a file that is not its own
        raise CheckpointError(f"{path} is not a {kind}: {cause}") from None
    if not isinstance(content, dict) or content.pop("kind", None) != kind:
        raise CheckpointError(f"{path} is not a {kind}")
    return content
