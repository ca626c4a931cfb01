"""Lambda-returns are those of the recursion written out, on any small lattice."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.learners import lambda_returns
from drl_assets.learning.learners.networks import HEADS
from drl_core.policy.actions import ACTION_COUNT, Action

IDENTITY = torch.tensor([1.0, 0.0])


def lattice(rng: np.random.Generator, lengths: list[int], levels: int) -> Columns:
    """Random rewards on trajectories of these lengths; some end by themselves."""
    count = sum(lengths)
    own = np.repeat(rng.integers(0, 4, len(lengths)) if levels > 1 else [0] * len(lengths), lengths)
    level = np.maximum(own[:, None], np.arange(levels)).astype(np.int8)
    rewards = rng.normal(-1, 1, (count, levels, ACTION_COUNT)).astype(np.float32)
    rewards[..., Action.INCREASE_ISOLATION][level == 3] = -np.inf
    last = np.zeros(count, dtype=np.bool_)
    last[np.cumsum(lengths) - 1] = True
    ended = np.repeat(rng.random(len(lengths)) < 0.5, lengths)
    return {"rewards": rewards, "level": level, "last": last, "terminated": last & ended}


def by_recursion(
    q: np.ndarray, rows: Columns, row: int, index: int, gamma: float, trace: float
) -> np.ndarray:
    """The five targets of a row at a level: each what it pays and what follows."""
    y: np.ndarray = rows["rewards"][row, index].astype(np.float64)
    above = min(int(rows["level"][row, index]) + 1, q.shape[1] - 1)
    for action, then in ((Action.CONTINUE_MONITORING, index), (Action.INCREASE_ISOLATION, above)):
        if not np.isfinite(y[action]):
            continue
        if rows["terminated"][row]:
            worth = 0.0
        elif rows["last"][row]:
            worth = q[row, then].max()
        else:
            following = by_recursion(q, rows, row + 1, then, gamma, trace)
            greedy = int(q[row + 1, then].argmax())
            worth = (1 - trace) * q[row + 1, then].max() + trace * following[greedy]
        y[action] += gamma * worth
    return y


@pytest.mark.property(16)
@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    levels=st.sampled_from([1, 4]),
    trace=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    gamma=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_targets_are_those_of_the_recursion(
    lengths: list[int], levels: int, trace: float, gamma: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = lattice(rng, lengths, levels)
    heads = rng.normal(-1, 1, (sum(lengths), levels, HEADS))
    q = lambda_returns.masked_q(heads, IDENTITY, rows)
    y = lambda_returns.lambda_targets(heads, IDENTITY, rows, gamma, trace)
    assert y.shape == (*heads.shape[:2], ACTION_COUNT)
    assert np.array_equal(np.isfinite(y), np.isfinite(rows["rewards"]))
    for row in range(len(heads)):
        for index in range(levels):
            expected = by_recursion(q, rows, row, index, gamma, trace)
            np.testing.assert_allclose(y[row, index], expected, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), slope=st.floats(0.1, 5), offset=st.floats(-5, 5))
def test_isolating_is_masked_at_the_highest_level_and_the_posterior_calibrated(
    seed: int, slope: float, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    rows = lattice(rng, [3, 2], 4)
    heads = rng.normal(0, 1, (5, 4, HEADS))
    calibration = torch.tensor([slope, offset])
    q = lambda_returns.masked_q(heads, calibration, rows)
    assert np.array_equal(np.isneginf(q[..., Action.INCREASE_ISOLATION]), rows["level"] == 3)
    a, b = calibration.double().tolist()
    malice = 1 / (1 + np.exp(-(a * heads[..., 0] + b)))
    terminate = 1 + Action.TERMINATE_PROCESS
    expected = malice * heads[..., terminate + 5] + (1 - malice) * heads[..., terminate]
    np.testing.assert_allclose(q[..., Action.TERMINATE_PROCESS], expected, atol=1e-9)


@pytest.mark.property(16)
def test_targets_by_hand() -> None:
    """One trajectory of two rows at one level; members that say -1 .. -5 of everything."""
    rewards = np.array([[-0.5, -0.6, -8, -6, -1], [-0.1, -0.2, -8, -6, -1]], dtype=np.float32)
    rows: Columns = {
        "rewards": rewards[:, None],
        "level": np.zeros((2, 1), dtype=np.int8),
        "last": np.array([False, True]),
        "terminated": np.array([False, True]),
    }
    heads = np.tile(np.r_[0.0, np.tile(-np.arange(1.0, 6), 2)], (2, 1, 1))
    y = lambda_returns.lambda_targets(heads, IDENTITY, rows, gamma=0.9, trace=0.5)[:, 0]
    value = 0.5 * -1.0 + 0.5 * -0.1  # half the members' word, half what followed
    np.testing.assert_allclose(y[1], rewards[1], atol=1e-6)
    expected = [-0.5 + 0.9 * value, -0.6 + 0.9 * value, -8, -6, -1]
    np.testing.assert_allclose(y[0], expected, atol=1e-6)
    rows["terminated"] = np.array([False, False])  # truncated: the last state's own value
    y = lambda_returns.lambda_targets(heads, IDENTITY, rows, gamma=0.9, trace=0.5)[:, 0]
    np.testing.assert_allclose(y[1], [-0.1 - 0.9, -0.2 - 0.9, -8, -6, -1], atol=1e-6)
