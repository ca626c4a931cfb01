"""The default learner's fit: seeded, resumable, bounded, by autograd the same; honest answers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_assets.learning.data import trajectories
from drl_assets.learning.data.episodes import Episodes
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.learners import checkpoint as checkpoints
from drl_assets.learning.learners import cross_fitting, fitted_q, lambda_returns, model_selection
from drl_assets.learning.learners.calibration import platt_scaling
from drl_assets.learning.learners.fitted_q import FittedConfig, FittedState
from drl_assets.learning.learners.mlp_ensemble import MLPEnsemble
from drl_assets.learning.learners.networks import HEADS, PosteriorQNetwork
from tests.drl_assets.learning.small import SMALL, randomised

CPU = torch.device("cpu")
CONFIG = FittedConfig(gradient_steps=40, members=3, target_updates=4, batch_size=32)


@pytest.fixture(scope="module")
def rows(episodes: Episodes) -> Columns:
    """Rows of 24 episodes, sessions in three folds."""
    found = trajectories.rows_of(episodes, np.random.default_rng(0))
    found["fold"], validated = cross_fitting.assign_folds(found, CONFIG.members)
    assert validated
    return found


def begin(rows: Columns, config: FittedConfig = CONFIG, seed: int = 0) -> FittedState:
    return fitted_q.start(config, rows, [8], seed, CPU)


def fit(rows: Columns, config: FittedConfig = CONFIG, seed: int = 0) -> FittedState:
    state = begin(rows, config, seed)
    fitted_q.fit(state, rows, config)
    return state


def weights(state: FittedState) -> dict[str, torch.Tensor]:
    return {**state.network.state_dict(), **state.stack.dump()}


def same(one: FittedState, two: FittedState) -> bool:
    a, b = weights(one), weights(two)
    rng = one.rng.bit_generator.state == two.rng.bit_generator.state
    return rng and one.losses == two.losses and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.property(29)
def test_one_seed_gives_one_fit(rows: Columns) -> None:
    first = fit(rows)
    assert same(first, fit(rows))
    assert not same(first, fit(rows, seed=1))


@pytest.mark.property(30)
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_fit_killed_after_any_refresh_goes_on_bit_for_bit(
    rows: Columns, tmp_path: Path, stop: int
) -> None:
    class Killed(Exception):  # noqa: N818
        """Stands for a process that ended."""

    def kill(state: FittedState) -> None:
        if len(state.losses) == stop:
            checkpoints.save_progress(tmp_path / "p.pt", "mark", fitted_q.dump(state))
            raise Killed

    with pytest.raises(Killed):
        fitted_q.fit(begin(rows), rows, CONFIG, kill)
    saved = checkpoints.load_progress(tmp_path / "p.pt", "mark")
    assert saved is not None
    resumed = begin(rows, seed=5)
    fitted_q.restore(resumed, saved)
    fitted_q.fit(resumed, rows, CONFIG)
    assert same(resumed, fit(rows))


@pytest.mark.property(27)
@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1e-2, 1e4), bound=st.floats(0.01, 100))
def test_the_gradients_norm_keeps_to_its_bound(rows: Columns, scale: float, bound: float) -> None:
    steep = {**rows, "rewards": rows["rewards"] * np.float32(scale)}
    config = dataclasses.replace(CONFIG, gradient_steps=4, target_updates=1, clip=bound)
    state = begin(steep, config)
    clip, after = state.stack.clip, []

    def watched(bound: float) -> torch.Tensor:
        before = clip(bound)
        after.append(torch.linalg.vector_norm(state.stack.gradient.flat, dim=1))
        return before

    state.stack.clip = watched  # type: ignore[method-assign]
    fitted_q.fit(state, steep, config)
    assert len(after) == 4
    assert 0 < float(torch.stack(after).max()) <= bound * (1 + 1e-5)
    assert 0 < state.max_gradient_norm <= bound * (1 + 1e-5)


@pytest.mark.property(26)
def test_targets_come_from_weights_that_are_frozen_between_refreshes(rows: Columns) -> None:
    state, refreshed = begin(rows), []
    before = state.frozen.flat.clone()

    def at_stretch(state: FittedState) -> None:
        refreshed.append((state.step, state.frozen.flat.clone()))
        assert not torch.equal(state.frozen.flat, state.averaged.flat), "learned, not yet frozen"

    fitted_q.fit(state, rows, CONFIG, at_stretch)
    assert [step for step, _ in refreshed] == [10, 20, 30, 40]
    assert torch.equal(refreshed[0][1], before), "the first stretch learns from the first weights"
    assert not torch.equal(refreshed[1][1], before)
    assert torch.equal(state.frozen.flat, state.averaged.flat), "at last, what is served"


@pytest.mark.property(26)
def test_between_refreshes_the_learned_weights_do_not_move_the_targets(rows: Columns) -> None:
    state = begin(rows)
    x = fitted_q._standardised(state, rows)
    y = fitted_q.td_target(state, x, rows, CONFIG)
    state.stack.parameters.flat.add_(1.0)
    assert torch.equal(fitted_q.td_target(state, x, rows, CONFIG), y), "only the average is asked"
    state.averaged.flat.add_(1.0)
    assert not torch.equal(fitted_q.td_target(state, x, rows, CONFIG), y)


def test_the_hand_written_fit_is_that_of_autograd(
    rows: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, several refreshes, clipping and calibration included."""

    def made(autograd: bool) -> Callable[..., MLPEnsemble]:
        return lambda *sizes, device: MLPEnsemble(
            *sizes, device=device, dtype=torch.float64, autograd=autograd
        )

    found = []
    for autograd in (False, True):
        monkeypatch.setattr(fitted_q, "MLPEnsemble", made(autograd))
        state = begin(rows)
        state.mean, state.scale = state.mean.double(), state.scale.double()
        fitted_q.fit(state, rows, CONFIG)
        found.append(state)
    by_hand, reference = found
    difference = (by_hand.stack.parameters.flat - reference.stack.parameters.flat).abs().max()
    assert float(difference) < 1e-9
    assert by_hand.losses == pytest.approx(reference.losses, abs=1e-9)


@pytest.mark.parametrize("member", range(3))
def test_a_member_never_speaks_of_sessions_it_has_seen(rows: Columns, member: int) -> None:
    state = fit(rows)
    x = fitted_q._standardised(state, rows)
    before = fitted_q.out_of_fold(state, x, rows)
    assert before.shape == (len(rows["last"]), 4, HEADS)
    state.frozen.flat[member] += 1.0
    changed = (fitted_q.out_of_fold(state, x, rows) != before).any(axis=(1, 2))
    np.testing.assert_array_equal(changed, rows["fold"] == member)


@pytest.mark.parametrize("member", range(3))
def test_a_member_never_learns_from_the_fold_it_leaves_out(rows: Columns, member: int) -> None:
    """Its own fold's labels and rewards turned over, a member's first stretch is the same."""
    config = dataclasses.replace(CONFIG, target_updates=1)
    out = rows["fold"] == member
    other = {name: column.copy() for name, column in rows.items()}
    other["malicious"][out] ^= True
    other["rewards"][out] -= 3.0
    one, two = begin(rows, config), begin(other, config)
    fitted_q.fit(one, rows, config)
    fitted_q.fit(two, other, config)
    equal = (one.averaged.flat == two.averaged.flat).all(dim=1)
    assert equal.tolist() == [k == member for k in range(3)]


def test_without_folds_the_mean_of_the_members_is_taken(rows: Columns) -> None:
    alone = {**rows, "fold": np.full(len(rows["fold"]), -1, dtype=np.int8)}
    state = fit(alone)
    assert state.calibration.tolist() == [1.0, 0.0], "nothing is left out to calibrate on"
    heads = fitted_q.out_of_fold(state, fitted_q._standardised(state, alone), alone)
    states = torch.from_numpy(alone["state"])
    with torch.no_grad():
        expected = state.network.heads(states.flatten(0, 1)).mean(dim=0)
    np.testing.assert_allclose(heads.reshape(expected.shape), expected.numpy(), atol=1e-5)


def test_the_utility_left_out_is_that_of_playing_each_members_answers(rows: Columns) -> None:
    """At the recording's level, until the first action that is not watching."""
    state = fit(rows)
    x = fitted_q._standardised(state, rows)
    answers = fitted_q.out_of_fold(state, x, rows)
    q = lambda_returns.masked_q(answers, state.calibration, rows)
    found = fitted_q.out_of_fold_utility(state, rows, CONFIG)
    begins = trajectories.starts(rows["last"])
    assert found.shape == begins.shape
    for e, low in enumerate(begins):
        row, index, total, discount = int(low), 0, 0.0, 1.0
        while True:
            action = int(q[row, index].argmax())
            total += discount * rows["rewards"][row, index, action]
            if action >= 2 or rows["last"][row]:
                break
            index = min(index + (action == 1), 3)
            row, discount = row + 1, discount * CONFIG.gamma
        assert found[e] == pytest.approx(total, abs=1e-6)


def bernoulli(count: int, slope: float, offset: float) -> tuple[np.ndarray, Columns]:
    """Single-row trajectories, each a session, malicious as a logit of that slope says."""
    rng = np.random.default_rng(3)
    logit = rng.normal(0, 2, count)
    malicious = rng.random(count) < 1 / (1 + np.exp(-(slope * logit + offset)))
    rows = {
        "malicious": malicious,
        "session": np.arange(count),
        "last": np.ones(count, dtype=np.bool_),
    }
    return logit, rows


@settings(max_examples=30, deadline=None)
@given(slope=st.floats(0.2, 3), offset=st.floats(-2, 2))
def test_calibration_finds_the_slope_and_offset_of_the_labels(slope: float, offset: float) -> None:
    logit, rows = bernoulli(20_000, slope, offset)
    found = platt_scaling(logit, rows).tolist()
    assert found == pytest.approx([slope, offset], abs=0.2)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 40), logit=st.floats(-3, 3))
def test_calibration_holds_to_the_identity_where_nothing_is_learned(
    count: int, logit: float
) -> None:
    """The same logit everywhere, as many malicious as it says."""
    share = 1 / (1 + np.exp(-logit))
    rows = {
        "malicious": np.arange(count * 1000) < round(share * count * 1000),
        "session": np.zeros(count * 1000),  # one session: hardly any weight
        "last": np.ones(count * 1000, dtype=np.bool_),
    }
    found = platt_scaling(np.full(count * 1000, logit), rows)
    assert found.tolist() == pytest.approx([1.0, 0.0], abs=0.05)


def test_long_trajectories_weigh_as_much_as_short_ones() -> None:
    logit, rows = bernoulli(400, 0.7, 0.5)
    many = np.where(np.arange(400) % 3 == 0, 50, 1)
    longer = {name: column.repeat(many) for name, column in rows.items()}
    longer["last"] = np.zeros(many.sum(), dtype=np.bool_)
    longer["last"][np.cumsum(many) - 1] = True
    found = platt_scaling(logit.repeat(many), longer)
    torch.testing.assert_close(found, platt_scaling(logit, rows), atol=1e-4, rtol=0)


def test_validation_picks_what_does_best_on_left_out_sessions(rows: Columns) -> None:
    chosen, tried = model_selection.select_finalists(rows, CONFIG, SMALL)
    again, retried = model_selection.select_finalists(rows, CONFIG, SMALL)
    assert chosen == again
    utility = [one["utility"] for one in tried]
    assert utility == [one["utility"] for one in retried]
    assert [one["input_noise"] for one in tried] == [
        c.input_noise for c in model_selection.CANDIDATES
    ]
    assert all(one["standard_error"] > 0 for one in tried)
    best = tried[int(np.argmax(utility))]
    assert chosen[0].input_noise == best["input_noise"]
    assert chosen[0].weight_decay == best["weight_decay"]
    kept = dataclasses.replace(
        chosen[0], input_noise=CONFIG.input_noise, weight_decay=CONFIG.weight_decay
    )
    assert kept == CONFIG, "nothing else is varied"


def test_a_champion_is_gone_on_from(rows: Columns) -> None:
    champion = randomised(PosteriorQNetwork([8], 3), 4)
    state = fitted_q.start(CONFIG, rows, [8], 0, CPU, champion)
    for name, tensor in state.network.state_dict().items():
        torch.testing.assert_close(tensor, champion.state_dict()[name], rtol=0, atol=0)


def test_half_of_every_batch_is_recent_where_some_rows_are(rows: Columns) -> None:
    recent = np.arange(len(rows["last"])) % 3 == 0
    groups = fitted_q.fold_groups(rows["fold"], 3, recent)
    drawn = fitted_q.draw_batches(groups, 4, 20, 32, np.random.default_rng(0)) // 4
    assert (recent[drawn].sum(axis=2) == 16).all()
    for member in range(3):
        assert not (rows["fold"][drawn[:, member]] == member).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_fits_as_well(rows: Columns) -> None:
    config = dataclasses.replace(CONFIG, gradient_steps=400)
    slow, fast = (fitted_q.start(config, rows, [8], 0, torch.device(d)) for d in ("cpu", "cuda"))
    for state in (slow, fast):
        fitted_q.fit(state, rows, config)
    worth = [fitted_q.out_of_fold_utility(state, rows, config).mean() for state in (slow, fast)]
    assert worth[0] == pytest.approx(worth[1], abs=0.2)
