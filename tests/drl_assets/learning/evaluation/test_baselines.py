"""The baselines: what they are tuned by, and that what is kept is what was fitted."""

import io

import numpy as np
import pytest
import torch

from drl_assets.learning.data import trajectories
from drl_assets.learning.data.episodes import Episodes
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.evaluation import baselines, classifiers
from drl_assets.learning.evaluation.evaluate import metrics, simulate
from drl_assets.learning.evaluation.policies import baseline_policy
from drl_assets.learning.gates.oracle_mdps import G1
from drl_core.policy.reward import DEFAULT_COSTS
from tests.drl_assets.learning.evaluation.test_evaluate import make
from tests.drl_assets.learning.small import SMALL

NAMES = {
    "threshold_rule",
    "logistic_regression",
    "logistic_regression_2",
    "gradient_boosting",
    "gradient_boosting_2",
}


CHEAP = {
    "logistic_regression": {"hyperparameters": {"c": 10.0, "weighting": "rows"}},
    "logistic_regression_2": {"hyperparameters": {"c": 10.0, "weighting": "rows"}},
    "gradient_boosting": {"hyperparameters": {**baselines.BOOSTING.grid[0], "iterations": 5}},
    "gradient_boosting_2": {"hyperparameters": {**baselines.BOOSTING.grid[0], "iterations": 5}},
}
"""Hyper-parameters of an earlier result, so that a test need not search."""


def recorded(episodes: Episodes) -> Columns:
    return trajectories.rows_of(episodes, np.random.default_rng(0), DEFAULT_COSTS)


def watched(episodes: Episodes) -> Columns:
    return baselines._monitored(recorded(episodes))


@pytest.fixture(scope="module")
def tuned(episodes: Episodes) -> dict[str, baselines.Baseline]:
    return baselines.tune(recorded(episodes))


def test_baselines_separate_what_can_be_separated() -> None:
    episodes = make("mb" * 20, sessions=8)
    found = baselines.tune(recorded(episodes))
    assert set(found) == NAMES
    for name, one in found.items():
        got = metrics(simulate(baseline_policy(one), episodes), episodes.malicious)
        assert (got["containment"], got["benign_interruption"]) == (1.0, 0.0), name
        assert got["utility"] == pytest.approx(0.0)
        assert got["containment_at_1pct"] == 1.0


def test_with_one_class_there_is_nothing_to_tune() -> None:
    assert baselines.tune(recorded(make("mm"))) == {}


def test_the_utility_that_a_threshold_is_tuned_by_is_that_of_simulation(
    episodes: Episodes, tuned: dict[str, baselines.Baseline]
) -> None:
    rule = tuned["threshold_rule"]
    played = simulate(baseline_policy(rule), episodes)
    assert played.returns.mean() == pytest.approx(rule["utility"], abs=1e-6)


def test_with_one_session_a_class_it_is_tuned_in_sample_and_says_so() -> None:
    episodes = make("mb" * 10, sessions=2)  # all of a class are one session
    found = baselines.tune(recorded(episodes))
    assert {one["folds"] for one in found.values()} == {0}
    assert {one["folds"] for one in baselines.tune(recorded(make("mmbb" * 8, 4))).values()} == {
        0,
        2,
    }


def test_scores_that_tune_come_from_a_scorer_that_never_saw_the_session(episodes: Episodes) -> None:
    rows = watched(episodes)
    folds = baselines._folds(rows, seed=0)
    assert np.array_equal(np.sort(np.concatenate(folds)), np.arange(len(rows["last"])))
    for left_out in folds:
        kept = np.setdiff1d(np.arange(len(rows["last"])), left_out)
        assert not set(rows["session"][left_out]) & set(rows["session"][kept])


@pytest.mark.parametrize("count", [1, 7, 40])
def test_kept_trees_decide_as_the_fitted_ones(count: int) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng = np.random.default_rng(count)
    states = rng.random((6000, 30))
    labels = states[:, 0] * states[:, 1] + 0.1 * rng.normal(size=6000) > 0.25
    model = HistGradientBoostingClassifier(max_iter=count).fit(states, labels)
    kept = classifiers.tree_arrays(model, count)
    fresh = rng.random((5000, 30))
    np.testing.assert_allclose(
        classifiers.boosting(kept, fresh), model.decision_function(fresh), atol=1e-12, rtol=0
    )


def test_the_kept_linear_model_decides_as_the_fitted_one(episodes: Episodes) -> None:
    from sklearn.linear_model import LogisticRegression

    rows = watched(episodes)
    states = rows["state"].astype(np.float64)
    scaled = states - states.mean(axis=0)
    scaled /= np.maximum(states.std(axis=0), classifiers.LEAST_SPREAD)
    ((_, kept),) = classifiers.fit_logistic(rows, {"c": 0.1, "weighting": "rows"}, 0)
    fitted = LogisticRegression(C=0.1, solver="newton-cholesky").fit(scaled, rows["malicious"])
    np.testing.assert_allclose(
        classifiers.linear(kept, states), fitted.decision_function(scaled), atol=1e-12, rtol=0
    )


def test_a_checkpoint_keeps_them_as_numbers_and_tensors(
    episodes: Episodes, tuned: dict[str, baselines.Baseline]
) -> None:
    buffer = io.BytesIO()
    torch.save(tuned, buffer)
    loaded = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    states = watched(episodes)["state"].astype(np.float64)
    for name in NAMES:
        for one, two in zip(
            baselines.act(tuned[name], states),
            baselines.act(loaded[name], states),
            strict=True,
        ):
            np.testing.assert_array_equal(one, two)


def test_known_hyperparameters_are_taken_and_the_rest_is_new(
    episodes: Episodes, tuned: dict[str, baselines.Baseline]
) -> None:
    again = baselines.tune(recorded(episodes), known=tuned)
    for name in NAMES:
        assert again[name]["hyperparameters"] == tuned[name]["hyperparameters"]
        assert again[name]["threshold"] == tuned[name]["threshold"]
    half = episodes.select(np.arange(0, len(episodes), 2))
    fewer = baselines.tune(recorded(half), known=tuned)
    assert fewer["logistic_regression"]["threshold"] != tuned["logistic_regression"]["threshold"]


def test_two_thresholds_are_never_worse_than_one_on_what_they_are_tuned_by(
    episodes: Episodes, tuned: dict[str, baselines.Baseline]
) -> None:
    for name in ("logistic_regression", "gradient_boosting"):
        assert tuned[f"{name}_2"]["utility"] >= tuned[name]["utility"]


def test_a_replay_that_ends_within_a_trajectory_can_be_tuned_on(episodes: Episodes) -> None:
    rows = {name: column[3:-3] for name, column in recorded(episodes).items()}
    assert set(baselines.tune(rows, known=CHEAP)) == NAMES


def test_the_reports_dqn_is_a_baseline_too(episodes: Episodes) -> None:
    one = baselines.report_dqn(episodes, SMALL)
    assert (one["kind"], one["hidden_layers"]) == ("network", [16, 16])
    played = simulate(baseline_policy(one), episodes)
    assert np.isfinite(played.returns).all()
    again = baselines.report_dqn(episodes, SMALL)
    assert all(torch.equal(again["weights"][k], v) for k, v in one["weights"].items())


def test_logistic_regression_with_two_thresholds_is_nearly_optimal_on_g1() -> None:
    """A sequential probability ratio test is optimal there, and this is one."""
    tuned = baselines.tune(G1.sample(1000, seed=0), known=CHEAP)
    shares = {
        name: G1.regret(lambda states, one=tuned[name]: baselines.act(one, states)[0]).share
        for name in ("logistic_regression", "logistic_regression_2")
    }
    assert shares["logistic_regression_2"] < 0.01
    assert shares["logistic_regression"] > 0.1, "one threshold cannot isolate while in doubt"
