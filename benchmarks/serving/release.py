"""The model of the benchmark: a graph of the default learner's shape, signed and released."""

import datetime as dt
from pathlib import Path

import msgspec
import torch

from drl_assets.learning.export import OPSET, export, golden
from drl_assets.learning.network import PosteriorQNetwork
from drl_core.bundle import Manifest, ModelStore, signing_key


def network() -> PosteriorQNetwork:
    """4 x [64, 64], as the default learner makes it, with weights of no meaning."""
    torch.manual_seed(0)
    made = PosteriorQNetwork()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def publish(home: Path) -> Path:
    """Release it into a home folder; gives the path of the graph."""
    made = network()
    graph, known = export(made), golden(made)
    fields = dict.fromkeys(Manifest.__struct_fields__, 0) | {
        "model_version": "v0",
        "training_date": dt.datetime.now(dt.UTC).isoformat(),
        "final_average_reward": None,
        "final_loss": None,
        "input_dim": 30,
        "output_dim": 5,
        "hidden_layers": [64, 64],
        "sequence": 1,
        "sha256": "0" * 64,
        "blob": "",
        "features_version": 1,
        "opset": OPSET,
        "preset": "default",
        "hyperparameters": {},
        "checkpoint_sha256": "0" * 64,
        "parent_version": None,
        "dagster_run_id": None,
        "batch_partitions": [],
        "git_commit": None,
        "evaluation": {},
        "rollback_of": None,
        "staged": False,
        "golden": msgspec.to_builtins(known),
    }
    manifest = msgspec.convert(fields, Manifest)
    released = ModelStore(home / "models").publish(graph, manifest, signing_key(home / "keys"))
    return home / "models" / released.blob
