"""Packaging of a release: the manifest of a checkpoint, and a signed bundle in a store."""

import hashlib
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drl_assets.learning.export import onnx_export
from drl_assets.learning.learners import checkpoint as checkpoints
from drl_assets.learning.learners.checkpoint import Checkpoint, CheckpointError
from drl_core.policy.actions import ACTION_COUNT
from drl_core.policy.features import FEATURE_COUNT, FEATURES_VERSION
from drl_core.release.manifest import Manifest
from drl_core.release.store import ModelStore

DETAILS = ("cost_curve", "containment_over_time", "calibration", "held_out_sessions", "per_source")
"""Parts of an evaluation that stay beside the checkpoint: a service reads the manifest often."""


def manifest(
    checkpoint: Checkpoint,
    path: Path,
    *,
    evaluation: dict[str, Any],
    run_id: str | None,
    commit: str | None,
) -> Manifest:
    """The manifest of a model before it is signed.

    Args:
        checkpoint: the trained policy.
        path: its file, whose hash goes into the manifest.
        evaluation: the table of policies, {} where there was no evaluation; DETAILS are left out.
        run_id: the Dagster run, None outside one.
        commit: of the code that trained it.
    """
    return Manifest(
        model_version=checkpoint.version,
        training_date=checkpoint.training_date,
        training_episodes=checkpoint.training_episodes,
        final_average_reward=checkpoint.final_average_reward,
        final_loss=checkpoint.losses[-1] if checkpoint.losses else None,
        learning_rate=checkpoint.hyperparameters["learning_rate"],
        gamma=checkpoint.hyperparameters["gamma"],
        input_dim=FEATURE_COUNT,
        output_dim=ACTION_COUNT,
        hidden_layers=checkpoint.hidden_layers,
        sequence=1,  # this and the next three are set when it is published
        sha256="0" * 64,
        blob="",
        size_bytes=0,
        features_version=FEATURES_VERSION,
        opset=onnx_export.OPSET,
        preset=checkpoint.preset,
        seed=checkpoint.seed,
        gradient_steps=checkpoint.gradient_steps,
        hyperparameters=checkpoint.hyperparameters,
        costs_version=checkpoint.costs_version,
        checkpoint_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        parent_version=checkpoint.parent_version,
        dagster_run_id=run_id,
        batch_partitions=checkpoint.batches,
        git_commit=commit,
        evaluation={name: part for name, part in evaluation.items() if name not in DETAILS},
        golden=onnx_export.golden(checkpoint.network()),
    )


def tuned_baselines(folder: Path, about: Manifest) -> dict[str, Any]:
    """The baselines that were tuned beside a released policy, from its checkpoint in the bundle.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        CheckpointError: the file is not the one that was signed.
    """
    path = folder / "checkpoints" / f"{about.model_version}.pt"
    if hashlib.sha256(path.read_bytes()).hexdigest() != about.checkpoint_sha256:
        raise CheckpointError(f"{path} is not the checkpoint that release {about.sequence} names")
    return checkpoints.load(path).baselines


def publish(
    checkpoint: Checkpoint,
    folder: Path,
    key: Ed25519PrivateKey,
    *,
    evaluation: dict[str, Any],
    commit: str | None = None,
) -> Manifest:
    """Write a bundle folder: checkpoint, graph and signed release (`drl train --out`)."""
    path = folder / "checkpoints" / f"{checkpoint.version}.pt"
    checkpoint.save(path)
    about = manifest(checkpoint, path, evaluation=evaluation, run_id=None, commit=commit)
    return ModelStore(folder).publish(onnx_export.export(checkpoint.network()), about, key)
