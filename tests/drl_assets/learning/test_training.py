"""Training: seeded, resumable bit for bit, incremental, bounded, and its targets are frozen."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from drl_assets import pipeline
from drl_assets.learning import checkpoint as checkpoints
from drl_assets.learning import dqn, fitted, training, trajectories
from drl_assets.learning.checkpoint import Checkpoint, CheckpointError
from drl_assets.learning.dqn import DQNConfig
from drl_assets.learning.environment import ContainmentEnv
from drl_assets.learning.episodes import Episodes
from drl_assets.learning.fitted import FittedConfig
from drl_assets.learning.network import QNetwork, seeded_network
from drl_assets.learning.training import NothingToLearn, train
from drl_assets.sources.generate import generate_events
from drl_core.reward import CostTable
from drl_core.settings import Learning
from drl_core.telemetry import Event
from tests.drl_assets.learning.small import REPORT, SMALL, saved

CPU = torch.device("cpu")
PRESETS = pytest.mark.parametrize("learning", [SMALL, REPORT], ids=["default", "report"])


def same(one: Checkpoint, two: Checkpoint) -> bool:
    weights = all(torch.equal(one.weights[n], two.weights[n]) for n in one.weights)
    replay = all(np.array_equal(one.replay[n], two.replay[n]) for n in one.replay)
    return weights and replay and (one.losses, one.returns) == (two.losses, two.returns)


def flat(network: QNetwork) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in network.parameters()])


class Killed(Exception):  # noqa: N818
    """Stands for a process that ended after its progress was saved."""


@pytest.mark.property(29)
@PRESETS
def test_one_seed_gives_one_set_of_weights(frame: pl.DataFrame, learning: Learning) -> None:
    first, second = train(frame, learning), train(frame, learning)
    assert same(first, second)
    other = train(frame, msgspec.structs.replace(learning, seed=1))
    assert not same(first, other)


@pytest.mark.property(30)
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_killed_default_training_goes_on_bit_for_bit(
    frame: pl.DataFrame, tmp_path: Path, stop: int
) -> None:
    path = tmp_path / "unfinished.pt"
    whole = train(frame, SMALL)
    seen: list[int] = []

    def kill(done: int, total: int, text: str) -> None:
        seen.append(done)
        if len(seen) == stop + 1:  # progress of the stretch before is saved
            raise Killed

    with pytest.raises(Killed):
        train(frame, SMALL, progress=kill, progress_path=path)
    rest: list[int] = []
    resumed = train(frame, SMALL, progress=lambda done, *_: rest.append(done), progress_path=path)
    assert rest[0] == seen[-1], "it began where the progress was saved"
    assert same(whole, resumed)
    assert not path.exists()


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
                train(frame, learning, costs=costs)
        return seen[0]

    narrow = msgspec.structs.replace(learning, hidden_layers=[8])
    turned = frame.with_columns(is_malicious=~pl.col("is_malicious"))
    marks = [
        mark(frame, learning, CostTable()),
        mark(frame, narrow, CostTable()),
        mark(frame, msgspec.structs.replace(learning, seed=4), CostTable()),
        mark(frame, learning, CostTable(review=0.5)),
        mark(frame.head(150), learning, CostTable()),
    ]
    assert len(set(marks)) == len(marks)
    if learning.preset == "report":
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
    new = pipeline.experiences_of([list(generate_events(8, 15, seed=9))])
    child = train(new, learning, parent=checkpoints.load(path), batches=["2"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert (child.batches, child.parent_version) == (["1", "2"], parent.version)
    assert child.training_episodes == 24 + 8
    name = "state"
    before = len(parent.replay[name])
    np.testing.assert_array_equal(child.replay[name][:before], parent.replay[name])
    assert len(child.replay[name]) > before
    if learning.preset == "default":
        assert len(child.replay[name]) == before + 2 * len(new)
        assert child.replay["last"][before - 1]


@pytest.mark.property(21)
def test_the_replay_of_a_long_line_of_descent_keeps_to_its_capacity() -> None:
    learning = msgspec.structs.replace(SMALL, replay_capacity=10_000, gradient_steps=10)
    frame = pipeline.experiences_of([list(generate_events(80, 50))])
    parent = train(frame, learning)
    assert len(parent.replay["state"]) == 8_000
    child = train(frame, learning, parent=parent)
    assert len(child.replay["state"]) == 10_000
    assert child.replay["last"][-1]
    many = pipeline.experiences_of([list(generate_events(150, 50))])
    assert len(train(many, learning).replay["state"]) == 10_000


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
        dqn.gradient_steps(state, config, CPU)
        now = flat(state.target)
        if not torch.equal(before, now):
            changes.append(step)
            assert torch.equal(now, flat(state.network))
        before = now
    assert changes == [1000, 2000]
    assert not torch.equal(before, flat(state.network))


@pytest.mark.property(26)
def test_the_default_presets_targets_come_from_frozen_weights(episodes: Episodes) -> None:
    config = FittedConfig(gradient_steps=40, target_updates=4)
    rows = trajectories.rows_of(episodes, np.random.default_rng(0))
    state = fitted.start(config, seeded_network([16], 0), 0, CPU)
    used: list[tuple[int, torch.Tensor]] = []
    real = fitted.targets

    def watched(frozen: QNetwork, *rest: object) -> object:
        assert frozen is state.frozen
        used.append((state.step, flat(frozen)))
        return real(frozen, *rest)  # type: ignore[arg-type]

    def unchanged(state: fitted.FittedState) -> None:
        assert torch.equal(flat(state.frozen), used[-1][1]), "frozen between refreshes"
        assert not torch.equal(flat(state.frozen), flat(state.averaged))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fitted, "targets", watched)
        fitted.fit(state, rows, config, CPU, unchanged)
    assert [step for step, _ in used] == [0, 10, 20, 30]


@pytest.mark.property(16)
def test_targets_by_hand() -> None:
    """One trajectory of two rows; a network whose Q-values are its biases."""
    network = QNetwork([4])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        list(network.parameters())[-1].copy_(torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0]))
    rewards = np.array([[-0.5, -0.6, -8, -6, -1], [-0.1, -0.2, -8, -6, -1]], dtype=np.float32)
    rows = {
        "state": np.zeros((2, 30), dtype=np.float32),
        "isolated_state": np.zeros((2, 30), dtype=np.float32),
        "rewards": rewards,
        "level": np.zeros(2, dtype=np.int8),
        "last": np.array([False, True]),
        "terminated": np.array([False, True]),
    }
    config = FittedConfig(gamma=0.9, trace=0.5)
    y = fitted.targets(network, rows, config, CPU)
    value = 0.5 * -1.0 + 0.5 * -0.1  # half the network's word, half what followed
    np.testing.assert_allclose(y[1], rewards[1], atol=1e-6)
    expected = [-0.5 + 0.9 * value, -0.6 + 0.9 * -1, -8, -6, -1]
    np.testing.assert_allclose(y[0], expected, atol=1e-6)
    rows["terminated"] = np.array([False, False])  # truncated: the last state's own value
    y = fitted.targets(network, rows, config, CPU)
    np.testing.assert_allclose(y[1], [-0.1 - 0.9, -0.2 - 0.9, -8, -6, -1], atol=1e-6)


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
    frame = pipeline.experiences_of([[Event(episode_id="e", step=0)]])
    with pytest.raises(NothingToLearn, match="none of the 1 episodes has a label"):
        train(frame, SMALL)


def test_episodes_whose_first_windows_carry_no_label_train() -> None:
    events = [
        Event(episode_id=f"e{e}", step=n, is_malicious=bool(e % 2) if n else None)
        for e in range(4)
        for n in range(3)
    ]
    trained = train(pipeline.experiences_of([events]), SMALL)
    assert np.isfinite(trained.losses).all()
    assert trained.training_episodes == 4


def test_a_loss_that_is_not_finite_is_said(frame: pl.DataFrame) -> None:
    broken = CostTable(interrupt_terminate=1e6, damage_extra={}, damage_presence=1e6)
    rows = frame.with_columns(damage=pl.col("damage") * 1e35)
    with pytest.raises(FloatingPointError, match="loss"):
        train(rows, SMALL, costs=broken)


def test_a_champion_of_another_preset_is_not_built_on(frame: pl.DataFrame) -> None:
    parent = train(frame, REPORT)
    assert not training.continues(parent, SMALL)
    with pytest.raises(ValueError, match="preset"):
        train(frame, SMALL, parent=parent)


def test_a_champion_of_another_shape_gives_its_replay_alone(frame: pl.DataFrame) -> None:
    narrow = train(frame, msgspec.structs.replace(SMALL, hidden_layers=[8]))
    child = train(frame, SMALL, parent=narrow)
    assert (child.hidden_layers, child.parent_version) == ([16, 16], narrow.version)


def test_a_checkpoint_is_read_back_whole(frame: pl.DataFrame, tmp_path: Path) -> None:
    trained = train(frame, SMALL, batches=["1"])
    digest = trained.save(tmp_path / "c.pt")
    assert digest == hashlib.sha256((tmp_path / "c.pt").read_bytes()).hexdigest()
    loaded = checkpoints.load(tmp_path / "c.pt")
    assert same(trained, loaded)
    assert loaded.version == trained.version
    rest = {"weights", "replay"}
    assert {k: v for k, v in vars(loaded).items() if k not in rest} == {
        k: v for k, v in vars(trained).items() if k not in rest
    }
    assert training.train is train


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
