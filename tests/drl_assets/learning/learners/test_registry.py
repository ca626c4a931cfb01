"""A third learner is a module and a line: registered here, it goes the whole way to a release."""

import math
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from drl_assets.learning import trainer
from drl_assets.learning.data.episodes import from_experiences
from drl_assets.learning.evaluation import evaluate, policies
from drl_assets.learning.export import onnx_export, release
from drl_assets.learning.learners import checkpoint as checkpoints
from drl_assets.learning.learners import registry
from drl_assets.learning.learners.checkpoint import Checkpoint
from drl_assets.learning.learners.registry import UnknownAlgorithmError
from drl_core.release import signing_keys
from drl_core.release.store import ModelStore
from tests.drl_assets.learning.learners.linear_q import LinearQConfig
from tests.drl_assets.learning.small import REPORT, SMALL

LINEAR = msgspec.structs.replace(SMALL, preset="linear", gradient_steps=200, episodes=2)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(registry.ALGORITHMS, "linear", LinearQConfig)
        yield


@pytest.fixture(scope="module")
def trained(frame: pl.DataFrame) -> Checkpoint:
    return trainer.train(frame, LINEAR, batches=["1"])


class Killed(Exception):  # noqa: N818
    """Stands for a process that ended."""


def test_a_third_learner_is_trained_and_said_what_it_is(trained: Checkpoint) -> None:
    assert trained.preset == "linear"
    assert trained.algorithm is LinearQConfig
    assert (trained.gradient_steps, trained.hidden_layers) == (200, [])
    assert trained.hyperparameters["learning_rate"] == LinearQConfig.learning_rate
    assert np.mean(trained.losses[-20:]) < np.mean(trained.losses[:20]), "it learns"


def test_its_checkpoint_is_read_back(trained: Checkpoint, tmp_path: Path) -> None:
    trained.save(tmp_path / "c.pt")
    loaded = checkpoints.load(tmp_path / "c.pt")
    x = torch.rand(5, 30)
    assert loaded.version == trained.version
    assert torch.equal(loaded.network()(x), trained.network()(x))


@pytest.mark.parametrize("stop", [5, 10, 95, 199])
def test_it_resumes_bit_for_bit_after_an_interruption(
    frame: pl.DataFrame, trained: Checkpoint, tmp_path: Path, stop: int
) -> None:
    def kill(done: int, total: int, text: str) -> None:
        if done == stop:
            raise Killed

    seen: list[int] = []
    path = tmp_path / "unfinished.pt"
    with pytest.raises(Killed):
        trainer.train(frame, LINEAR, progress=kill, progress_path=path, tune_baselines=False)
    resumed = trainer.train(
        frame,
        LINEAR,
        progress=lambda done, total, text: seen.append(done),
        progress_path=path,
        tune_baselines=False,
    )
    assert seen[0] == (stop - 1) // 10 * 10 + 1, "it began where the progress was saved"
    assert resumed.version[-8:] == trained.version[-8:]
    assert resumed.losses == trained.losses
    assert not path.exists()


def test_it_goes_on_from_its_champion_and_from_no_other(
    frame: pl.DataFrame, trained: Checkpoint
) -> None:
    child = trainer.train(frame, LINEAR, parent=trained, tune_baselines=False)
    assert child.parent_version == trained.version
    assert len(child.replay["last"]) == 2 * len(trained.replay["last"])
    for learning in (SMALL, REPORT):
        assert not trainer.continues(trained, learning)


def test_it_is_evaluated_beside_baselines_tuned_on_its_trajectories(
    frame: pl.DataFrame, trained: Checkpoint
) -> None:
    assert {"report_dqn", "logistic_regression"} <= trained.baselines.keys()
    result = evaluate.evaluate_policies(
        policies.network_policy(trained.network()), from_experiences(frame), trained.baselines
    )
    assert {"drl", "report_dqn", "threshold_rule"} <= result["policies"].keys()
    assert math.isfinite(result["advantage_mean"]["threshold_rule"])


def test_its_graph_is_released_and_gives_the_golden_answers(
    trained: Checkpoint, tmp_path: Path
) -> None:
    key = signing_keys.signing_key(tmp_path / "keys")
    release.publish(trained, tmp_path / "bundle", key, evaluation={})
    trusted = {signing_keys.key_id(key.public_key()): key.public_key()}
    loaded = ModelStore(tmp_path / "bundle").load(trusted)
    onnx_export.check_golden(loaded)
    assert loaded.manifest.preset == "linear"
    assert onnx_export.parity(trained.network(), loaded.model, 1000)["argmax_flips"] == 0


def test_an_unknown_algorithm_is_refused_with_the_names_of_the_known(frame: pl.DataFrame) -> None:
    unknown = msgspec.structs.replace(SMALL, preset="best")
    with pytest.raises(UnknownAlgorithmError, match="'best'; known are: default, linear, report"):
        trainer.train(frame, unknown)
