"""Training: seeded, resumable bit for bit, incremental, bounded, and its targets are frozen."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from drl_assets.learning import trainer
from drl_assets.learning.data.environment import ContainmentEnv
from drl_assets.learning.data.episodes import Episodes
from drl_assets.learning.learners import checkpoint as checkpoints
from drl_assets.learning.learners import dqn, model_selection
from drl_assets.learning.learners.checkpoint import Checkpoint, CheckpointError
from drl_assets.learning.learners.dqn import DQNConfig
from drl_assets.learning.learners.networks import QNetwork, seeded_network
from drl_assets.learning.trainer import NothingToLearn
from drl_assets.sources.synthetic import generate_events
from drl_assets.tables import transforms
from drl_core.policy.reward import CostTable
from drl_core.settings import Learning
from drl_core.telemetry.event import Event
from tests.drl_assets.learning.small import REPORT, SMALL, saved

CPU = torch.device("cpu")
PRESETS = pytest.mark.parametrize("learning", [SMALL, REPORT], ids=["default", "report"])


def same(one: Checkpoint, two: Checkpoint) -> bool:
    weights = all(torch.equal(one.weights[n], two.weights[n]) for n in one.weights)
    replay = all(np.array_equal(one.replay[n], two.replay[n]) for n in one.replay)
    return weights and replay and (one.losses, one.returns) == (two.losses, two.returns)


def flat(network: QNetwork) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in network.parameters()])


def train(frame: pl.DataFrame, learning: Learning, **rest: Any) -> Checkpoint:
    """Training without the baselines, which take longer than a small policy."""
    return trainer.train(frame, learning, tune_baselines=False, **rest)


def without_cpu_time(trained: Checkpoint) -> dict[str, Any]:
    """Hyper-parameters and what was tried for them."""
    tried = trained.hyperparameters["validation"]
    kept = [{name: one[name] for name in one if name != "cpu_s"} for one in tried]
    return {**trained.hyperparameters, "validation": kept}


def equal(one: Any, two: Any) -> bool:
    """Whether nested tensors, arrays, numbers and texts are the same."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[name], two[name]) for name in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    return bool(one == two)


class Killed(Exception):  # noqa: N818
    """Stands for a process that ended after its progress was saved."""


@pytest.mark.property(29)
@PRESETS
def test_one_seed_gives_one_set_of_weights(few: pl.DataFrame, learning: Learning) -> None:
    first, second = train(few, learning), train(few, learning)
    assert same(first, second)
    other = train(few, msgspec.structs.replace(learning, seed=1))
    assert not same(first, other)


class Watching:
    """Training's progress as it is told; kills at the event of a number, before it is saved."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.done: list[int] = []
        self.trials = 0
        self._kill_at = kill_at

    def __call__(self, done: int, total: int, text: str) -> None:
        self.trials += text == "trials"
        self.done.append(done)
        if len(self.done) - 1 == self._kill_at:
            raise Killed


@pytest.mark.property(30)
def test_a_killed_training_goes_on_bit_for_bit_with_its_validation(
    few: pl.DataFrame, tmp_path: Path
) -> None:
    """Validation included: it is made again where it was not finished, and taken where it was."""
    path, told = tmp_path / "unfinished.pt", Watching()
    whole = train(few, SMALL, progress=told)
    assert told.trials == len(model_selection.CANDIDATES)
    assert told.done == sorted(told.done)
    for stop in (1, told.trials, told.trials + 1, told.trials + 7, len(told.done) - 1):
        with pytest.raises(Killed):
            train(few, SMALL, progress=Watching(stop), progress_path=path)
        rest = Watching()
        resumed = train(few, SMALL, progress=rest, progress_path=path)
        expected = told.done[stop:] if stop > told.trials else told.done
        assert rest.done == expected, "it began where the progress was saved"
        assert same(whole, resumed)
        assert without_cpu_time(whole) == without_cpu_time(resumed)
        assert not list(tmp_path.iterdir())


@pytest.mark.property(30)
def test_a_killed_report_training_goes_on_bit_for_bit(episodes: Episodes, tmp_path: Path) -> None:
    config = DQNConfig(episodes=40, target_update_steps=20, batch_size=8)

    def fresh() -> dqn.DQNState:
        return dqn.start(config, seeded_network([16], 0), 0, CPU)

    whole = fresh()
    dqn.fit(whole, ContainmentEnv(episodes), config, CPU)

    def kill(state: dqn.DQNState) -> None:
        checkpoints.save_progress(tmp_path / "p.pt", "mark", dqn.dump(state))
        if state.episode == 17:
            raise Killed

    with pytest.raises(Killed):
        dqn.fit(fresh(), ContainmentEnv(episodes), config, CPU, kill)
    assert checkpoints.load_progress(tmp_path / "p.pt", "another") is None
    loaded = checkpoints.load_progress(tmp_path / "p.pt", "mark")
    assert loaded is not None
    resumed = fresh()
    dqn.restore(resumed, loaded)
    assert resumed.episode == 17
    dqn.fit(resumed, ContainmentEnv(episodes), config, CPU)
    assert torch.equal(flat(whole.network), flat(resumed.network))
    assert torch.equal(flat(whole.target), flat(resumed.target))
    assert (whole.returns, whole.losses) == (resumed.returns, resumed.losses)
    assert whole.rng.bit_generator.state == resumed.rng.bit_generator.state
    for name, tensor in whole.stack.dump().items():
        assert torch.equal(tensor, resumed.stack.dump()[name]), name
    before, after = whole.replay.snapshot(), resumed.replay.snapshot()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.property(30)
@PRESETS
def test_progress_of_other_settings_labels_or_costs_is_not_taken(
    frame: pl.DataFrame, tmp_path: Path, learning: Learning
) -> None:
    def mark(frame: pl.DataFrame, learning: Learning, costs: CostTable) -> str:
        seen: list[str] = []
        real = checkpoints.fingerprint

        def record(*arguments: object) -> str:
            seen.append(real(*arguments))  # type: ignore[arg-type]
            raise Killed

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(checkpoints, "fingerprint", record)
            with pytest.raises(Killed):
                train(frame, learning, costs=costs, progress_path=tmp_path / "unfinished.pt")
        return seen[0]

    narrow = msgspec.structs.replace(learning, hidden_layers=[8], member_layers=[9])
    turned = frame.with_columns(is_malicious=~pl.col("is_malicious"))
    marks = [
        mark(frame, learning, CostTable()),
        mark(frame, narrow, CostTable()),
        mark(frame, msgspec.structs.replace(learning, seed=4), CostTable()),
        mark(frame, learning, CostTable(review=0.5)),
        mark(frame.head(150), learning, CostTable()),
    ]
    assert len(set(marks)) == len(marks)
    assert mark(turned, learning, CostTable()) != marks[0]
    assert mark(frame, learning, CostTable()) == marks[0]


@pytest.mark.property(31)
@PRESETS
def test_incremental_training_reads_new_rows_and_the_parents_replay_alone(
    frame: pl.DataFrame, tmp_path: Path, learning: Learning
) -> None:
    parent = train(frame, learning, batches=["1"])
    path = tmp_path / "parent.pt"
    digest = parent.save(path)
    new = transforms.experiences_of([list(generate_events(8, 15, seed=9))])
    child = train(new, learning, parent=checkpoints.load(path), batches=["2"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert (child.batches, child.parent_version) == (["1", "2"], parent.version)
    assert child.training_episodes == 24 + 8
    name = "state"
    before = len(parent.replay[name])
    np.testing.assert_array_equal(child.replay[name][:before], parent.replay[name])
    assert len(child.replay[name]) > before
    if learning.preset == "default":
        assert len(child.replay[name]) == before + len(new)
        assert child.replay["last"][before - 1]
        folds = parent.replay["fold"]
        np.testing.assert_array_equal(child.replay["fold"][:before], folds)
        assert child.gradient_steps == learning.incremental_steps
        assert without_cpu_time(child)["validation"] == without_cpu_time(parent)["validation"]


@pytest.mark.property(21)
def test_the_replay_of_a_long_line_of_descent_keeps_to_its_capacity() -> None:
    learning = msgspec.structs.replace(
        SMALL, replay_capacity=10_000, incremental_steps=10, gradient_steps=10, validation_steps=1
    )
    frame = transforms.experiences_of([list(generate_events(80, 50))])
    trained = train(frame, learning)
    assert len(trained.replay["state"]) == 4_000
    for rows in (8_000, 10_000, 10_000):
        trained = train(frame, learning, parent=trained)
        assert rows - 2 * 50 < len(trained.replay["state"]) <= rows, "whole episodes of 50"
        assert trained.replay["last"][-1]


@pytest.mark.property(26)
def test_the_reports_target_changes_exactly_every_1000_gradient_steps(episodes: Episodes) -> None:
    config = DQNConfig()
    assert (config.target_update_steps, config.replay_capacity) == (1000, 100_000)
    state = dqn.start(config, seeded_network([8], 0), 0, CPU)
    rng, n = np.random.default_rng(0), 200
    state.replay.add(
        {
            "state": rng.random((n, 30), dtype=np.float32),
            "action": rng.integers(5, size=n),
            "reward": -rng.random(n, dtype=np.float32),
            "next_state": rng.random((n, 30), dtype=np.float32),
            "terminated": rng.random(n) < 0.3,
        }
    )
    before, changes = flat(state.target), []
    for step in range(1, 2101):
        dqn.update(state, config, CPU)
        now = flat(state.target)
        if not torch.equal(before, now):
            changes.append(step)
            assert torch.equal(now, flat(state.network))
        before = now
    assert changes == [1000, 2000]
    assert not torch.equal(before, flat(state.network))


@pytest.mark.property(27)
@PRESETS
def test_the_gradients_norm_is_clipped(frame: pl.DataFrame, learning: Learning) -> None:
    steep = CostTable(interrupt_terminate=1e5, interrupt_quarantine=1e5)
    learning = msgspec.structs.replace(learning, episodes=40)
    trained = train(frame, learning, costs=steep)
    assert trained.gradient_steps > 0
    assert 0 < trained.max_gradient_norm <= 10.0 + 1e-4


@pytest.mark.property(28)
def test_epsilon_falls_exponentially_from_1_to_a_tenth() -> None:
    config = DQNConfig()
    epsilon = np.array([config.epsilon(n) for n in range(600)])
    assert (epsilon[0], epsilon[499]) == (1.0, pytest.approx(0.1))
    assert (np.diff(epsilon) <= 0).all()
    ratios = epsilon[1:500] / epsilon[:499]
    np.testing.assert_allclose(ratios, ratios[0])
    assert DQNConfig(episodes=1).epsilon(0) == 1.0


def test_the_reports_preset_is_the_reports(frame: pl.DataFrame) -> None:
    trained = train(frame, REPORT)
    numbers = trained.hyperparameters
    assert (numbers["batch_size"], numbers["learning_rate"], numbers["gamma"]) == (64, 1e-4, 0.99)
    assert (numbers["checkpoint_episodes"], len(trained.returns)) == (50, 12)
    assert set(trained.replay) == set(dqn.TRANSITION_COLUMNS)


@pytest.mark.property(19)
def test_nothing_labelled_is_nothing_to_learn() -> None:
    frame = transforms.experiences_of([[Event(episode_id="e", step=0)]])
    with pytest.raises(NothingToLearn, match="none of the 1 episodes has a label"):
        train(frame, SMALL)


def test_episodes_whose_first_windows_carry_no_label_train() -> None:
    events = [
        Event(episode_id=f"e{e}", step=n, is_malicious=bool(e % 2) if n else None)
        for e in range(4)
        for n in range(3)
    ]
    trained = train(transforms.experiences_of([events]), SMALL)
    assert np.isfinite(trained.losses).all()
    assert trained.training_episodes == 4


def test_a_loss_that_is_not_finite_is_said(frame: pl.DataFrame) -> None:
    broken = CostTable(interrupt_terminate=1e6, damage_extra={}, damage_presence=1e6)
    rows = frame.with_columns(damage=pl.col("damage") * 1e35)
    with pytest.raises(FloatingPointError, match="loss"):
        train(rows, SMALL, costs=broken)


def test_a_champion_of_another_preset_is_not_built_on(frame: pl.DataFrame) -> None:
    parent = train(frame, REPORT)
    assert not trainer.continues(parent, SMALL)
    with pytest.raises(ValueError, match="preset"):
        train(frame, SMALL, parent=parent)


def test_a_champion_of_another_shape_gives_its_replay_alone(frame: pl.DataFrame) -> None:
    narrow = train(frame, msgspec.structs.replace(SMALL, member_layers=[4]))
    child = train(frame, SMALL, parent=narrow)
    assert (child.hidden_layers, child.parent_version) == ([8], narrow.version)
    assert len(child.replay["last"]) == 2 * len(narrow.replay["last"])
    assert child.gradient_steps == SMALL.gradient_steps, "from scratch"
    assert child.hyperparameters["chosen_on_rows"] == len(child.replay["last"])


def test_a_checkpoint_is_read_back_whole(few: pl.DataFrame, tmp_path: Path) -> None:
    learning = msgspec.structs.replace(SMALL, episodes=2)
    trained = trainer.train(few, learning, batches=["1"])
    assert {"report_dqn", "logistic_regression"} <= trained.baselines.keys()
    digest = trained.save(tmp_path / "c.pt")
    assert digest == hashlib.sha256((tmp_path / "c.pt").read_bytes()).hexdigest()
    loaded = checkpoints.load(tmp_path / "c.pt")
    assert loaded.version == trained.version
    assert equal(vars(loaded), vars(trained))
    x = torch.rand(5, 30)
    assert torch.equal(loaded.network()(x), trained.network()(x))


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoints.load(tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="is not a progress"):
        checkpoints.load_progress(tmp_path / "c.pt", "mark")


def test_a_checkpoint_cut_short_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    saved(seeded_network([8], 0), {"n": np.zeros(2)}).save(path)
    with pytest.raises(CheckpointError, match="is not a progress"):
        checkpoints.load_progress(path, "mark")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoints.load(path)
