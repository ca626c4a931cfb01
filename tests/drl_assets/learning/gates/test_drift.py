"""Distances between telemetry: none of alike, known ones of unlike; the impossible is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drl_assets.learning.gates import drift
from drl_core.policy.features import FEATURE_COUNT, FEATURES
from drl_core.settings import Gates

values = arrays(np.float64, st.integers(1, 60), elements=st.sampled_from([n / 6 for n in range(7)]))


def states(count: int, seed: int = 0, shift: float = 0.0) -> drift.States:
    drawn = np.random.default_rng(seed).beta(2, 5, size=(count, FEATURE_COUNT))
    drawn[:, 4] = np.clip(drawn[:, 4] + shift, 0, 1)
    return drawn


@given(values, values)
def test_the_distance_of_distributions_is_the_greatest_one(
    was: drift.States, now: drift.States
) -> None:
    expected = max(abs((was <= n / 6).mean() - (now <= n / 6).mean()) for n in range(7))
    assert drift.kolmogorov_smirnov(was, now) == pytest.approx(expected, abs=1e-12)


@given(values, values)
def test_stability_is_never_negative_and_zero_for_the_same(
    was: drift.States, now: drift.States
) -> None:
    assert drift.population_stability(was, was) == 0
    found = drift.population_stability(was, now)
    assert np.isfinite(found)
    assert found >= 0


def test_stability_of_a_shift_is_that_of_its_shares() -> None:
    was, now = np.array([0.0] * 500 + [1.0] * 500), np.array([0.0] * 900 + [1.0] * 100)
    expected = (0.9 - 0.5) * np.log(0.9 / 0.5) + (0.1 - 0.5) * np.log(0.1 / 0.5)
    assert drift.population_stability(was, now) == pytest.approx(expected, rel=0.02)


def test_the_kernel_distance_sees_a_change_that_no_single_feature_shows() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((400, 1))
    together, apart = np.hstack((x, x)), rng.random((400, 2))
    assert drift.mean_discrepancy(together, apart) > 0.01
    assert abs(drift.mean_discrepancy(apart, rng.random((400, 2)))) < 0.01
    assert drift.kolmogorov_smirnov(together[:, 1], apart[:, 1]) < 0.15


@given(st.integers(2, 40), st.integers(0, 2**31))
def test_the_kernel_distance_is_symmetric_in_what_is_compared(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.random((count, 3)), rng.random((count + 1, 3)) + 0.5
    assert drift.mean_discrepancy(x, y) == pytest.approx(drift.mean_discrepancy(y, x))


def test_like_states_pass_and_a_shifted_feature_is_a_warning_by_name() -> None:
    bounds = Gates()
    assert drift.drift_within_bounds(states(800), states(800, 1), bounds).passed
    verdict = drift.drift_within_bounds(states(800), states(800, 1, shift=0.4), bounds)
    assert (verdict.passed, verdict.severity) == (False, "WARN")
    assert FEATURES[4] in verdict.reason
    assert verdict.figures["psi"].keys() == set(FEATURES)


def test_without_a_champion_or_new_rows_drift_does_not_apply() -> None:
    assert drift.drift_within_bounds(None, states(10), Gates()).passed
    assert drift.drift_within_bounds(states(10), states(0), Gates()).passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_an_impossible_value_refuses_by_feature(value: float) -> None:
    wrong = states(20)
    wrong[3, 7] = value
    for reference in (None, states(20)):
        verdict = drift.drift_within_bounds(reference, wrong, Gates())
        assert (verdict.passed, verdict.severity) == (False, "ERROR")
        assert f"{FEATURES[7]} is not finite or outside 0 to 1 in 1 of 20" in verdict.reason


def test_one_state_over_and_over_refuses() -> None:
    verdict = drift.drift_within_bounds(states(20), np.repeat(states(1), 5, axis=0), Gates())
    assert (verdict.passed, verdict.severity) == (False, "ERROR")
