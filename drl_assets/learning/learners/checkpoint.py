"""Checkpoints: what a trained policy is and what the next training goes on from.

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
from drl_assets.learning.learners.networks import PosteriorQNetwork, QNetwork
from drl_core.files import write_atomically
from drl_core.policy.reward import CostTable
from drl_core.settings import Learning


class CheckpointError(ValueError):
    """A file that is not a checkpoint of this program."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained policy with its past."""

    preset: str
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
    """Returns of the training episodes (report's preset)."""
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

    def network(self) -> QNetwork | PosteriorQNetwork:
        """The policy's network, on the CPU."""
        network: QNetwork | PosteriorQNetwork = (
            PosteriorQNetwork(self.hidden_layers, self.hyperparameters["members"])
            if self.preset == "default"
            else QNetwork(self.hidden_layers)
        )
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
    """Save an unfinished training so that a killed run goes on from here.

    Args:
        path: the progress file.
        fingerprint: of the data and settings, see `fingerprint`.
        state: tensors, numbers, texts and random generators.
    """
    prepared = {
        name: {"rng": json.dumps(value.bit_generator.state)}
        if isinstance(value, np.random.Generator)
        else value
        for name, value in state.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path, _pack({"state": prepared, "fingerprint": fingerprint, "kind": "progress"})
    )


def load_progress(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The saved progress of exactly this training, None where there is none."""
    if not path.exists():
        return None
    content = _unpack(path.read_bytes(), "progress", path)
    if content["fingerprint"] != fingerprint:
        return None
    state: dict[str, Any] = content["state"]
    for name, value in state.items():
        if isinstance(value, dict) and value.keys() == {"rng"}:
            state[name] = np.random.default_rng()
            state[name].bit_generator.state = json.loads(value["rng"])
    return state


def fingerprint(
    config: Any, learning: Learning, costs: CostTable, columns: Columns, parent_version: str | None
) -> str:
    """Identifies a training: same settings, costs, data and ancestor."""
    settings = [asdict(config), learning, costs, parent_version]
    digest = hashlib.sha256(msgspec.json.encode(settings))
    for name in sorted(columns):
        digest.update(np.ascontiguousarray(columns[name]).data)
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
