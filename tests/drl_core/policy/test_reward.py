"""Costs and hindsight rewards: containing early never costs, interrupting never pays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_core.policy import actions, reward
from drl_core.policy.actions import Action
from drl_core.policy.reward import CostTable

GAMMA = 0.99
damages = st.lists(st.floats(0, 3), min_size=1, max_size=30)


def returns_of_stopping(
    next_damage: list[float], malicious: bool, level: int, action: Action
) -> np.ndarray:
    """Discounted return of watching until step t and then acting, for every t; last: never."""
    n = len(next_damage)
    table = reward.hindsight(
        np.array(next_damage), np.full(n, malicious), np.full(n, level, dtype=np.int64)
    )
    discount = GAMMA ** np.arange(n)
    watching = np.append(0.0, np.cumsum(discount * table[:, Action.CONTINUE_MONITORING]))
    return np.append(watching[:-1] + discount * table[:, action], watching[-1])


@pytest.mark.property(17)
@settings(max_examples=200, deadline=None)
@given(damage=damages, level=st.integers(0, 3))
def test_quarantining_malice_earlier_never_lowers_the_return(
    damage: list[float], level: int
) -> None:
    returns = returns_of_stopping([*damage, 0.0], True, level, Action.QUARANTINE_FILE)
    assert (np.diff(returns) <= 1e-12).all()


@pytest.mark.property(17)
@settings(max_examples=200, deadline=None)
@given(severity=st.floats(0.1, 1), damage=damages, level=st.integers(1, 3) | st.just(0))
def test_terminating_malice_of_some_severity_earlier_never_lowers_the_return(
    severity: float, damage: list[float], level: int
) -> None:
    """Below a severity of 0.1 delaying the fixed cost of recurrence outweighs a window's damage."""
    least = severity * reward.DEFAULT_COSTS.damage_presence
    spared = 1 - reward.DEFAULT_COSTS.isolation_effectiveness[level]
    gain = (1 - GAMMA) * reward.DEFAULT_COSTS.recurrence
    assert least * spared + reward.DEFAULT_COSTS.isolation_per_window[level] >= gain - 1e-12
    ends = returns_of_stopping(
        [max(x, least) for x in damage], True, level, Action.TERMINATE_PROCESS
    )
    assert (np.diff(ends[:-1]) <= 1e-12).all()


@pytest.mark.property(17)
@settings(max_examples=200, deadline=None)
@given(
    windows=st.integers(1, 90),
    level=st.integers(0, 3),
    action=st.sampled_from([Action.TERMINATE_PROCESS, Action.QUARANTINE_FILE]),
)
def test_interrupting_a_benign_run_never_raises_its_return(
    windows: int, level: int, action: Action
) -> None:
    """At level 3 up to 91 windows: the upkeep of a longer isolation exceeds a quarantine's cost."""
    returns = returns_of_stopping([0.0] * windows, False, level, action)
    assert (returns[:-1] <= returns[-1] + 1e-12).all()


@pytest.mark.property(17)
@settings(max_examples=100, deadline=None)
@given(level=st.integers(0, 2), windows=st.integers(91, 3000))
def test_nor_however_long_the_run_below_the_last_isolation_level(level: int, windows: int) -> None:
    for action in (Action.TERMINATE_PROCESS, Action.QUARANTINE_FILE):
        returns = returns_of_stopping([0.0] * windows, False, level, action)
        assert returns[0] <= returns[-1] + 1e-12


def test_rewards_of_each_action_by_hand() -> None:
    rewards = reward.hindsight(
        np.array([0.5, 0.5, 0.0]), np.array([True, True, False]), np.array([0, 3, 1])
    )
    np.testing.assert_allclose(
        rewards,
        [
            [-0.5, -0.5 * 0.6 - 0.02, -0.5, 0.0, -0.9],
            [-0.5 * 0.1 - 0.1, -np.inf, -0.5, 0.0, -0.9],
            [-0.02, -0.05, -8.0, -6.0, -1.0],
        ],
    )


@settings(max_examples=100, deadline=None)
@given(
    now=st.lists(st.floats(0, 1), min_size=12, max_size=12),
    severity=st.floats(0, 1),
    extra=st.floats(-1e6, 1e6) | st.just(float("nan")),
)
def test_damage_is_never_negative_and_grows_with_severity(
    now: list[float], severity: float, extra: float
) -> None:
    signals = {"files_encrypted": np.array([extra] * 3)}
    row = np.tile(now, (3, 1))
    none, some, all_ = reward.damage(row, np.array([0.0, severity, 1.0]), signals)
    assert none == 0 <= some <= all_
    assert np.isfinite(all_)


def test_damage_of_an_extra_signal_has_its_weight() -> None:
    row, one = np.zeros((1, 12)), np.ones(1)
    costs = CostTable(damage_extra={"files_encrypted": 0.5, "absent": 9.0})
    signals = {"files_encrypted": np.array([4.0]), "other": np.array([7.0])}
    assert reward.damage(row, one, signals, costs)[0] == pytest.approx(0.05 + 2.0)


def test_isolating_is_masked_at_the_last_level_alone() -> None:
    mask = actions.allowed(np.arange(4))
    assert mask[:, Action.INCREASE_ISOLATION].tolist() == [True, True, True, False]
    assert mask.sum() == 19
    assert actions.allowed(3).tolist() == [True, False, True, True, True]
    assert [a.label for a in Action][4] == "request_human_review"
