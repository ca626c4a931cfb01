"""Champion/challenger gates on figures made by hand: what each refuses, lets through, and says."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_assets.learning.data.episodes import Episodes
from drl_assets.learning.evaluation import evaluate, policies
from drl_assets.learning.evaluation.bootstrap import clopper_pearson
from drl_assets.learning.gates import evaluation_gates
from drl_core.settings import Gates

BOUNDS = Gates()
Pair = dict[str, Any]


def pair(mean: float, half: float | None = 0.02) -> Pair:
    return {"mean": mean, "interval": None if half is None else [mean - half, mean + half]}


def table(
    *,
    champion: dict[str, Pair] | None = None,
    types: dict[str, tuple[int, Pair]] | None = None,
    interrupted: int = 0,
    benign: int = 1000,
    review: float = 0.1,
    advantage: dict[str, Pair] | None = None,
) -> dict[str, Any]:
    """An evaluation's table with the parts that gates read."""
    over = {"never_act": pair(1.0), "always_terminate": pair(2.0), **(advantage or {})}
    ours = {"benign_interruption": interrupted / benign, "review_load": review}
    against = None
    if champion is not None:
        level = pair(0.0)
        against = {"utility": level, "benign_interruption": level, "review_load": level, **champion}
    return {
        "episodes": 2 * benign,
        "malicious": benign,
        "sessions": 20,
        "policies": {"drl": ours} | ({"champion": ours} if against else {}),
        "intervals": {
            "drl": {
                "benign_interruption": clopper_pearson(interrupted, benign),
                "review_load": [max(review - 0.05, 0.0), review + 0.05],
            }
        },
        "advantage": {name: one["interval"] for name, one in over.items()},
        "advantage_mean": {name: one["mean"] for name, one in over.items()},
        "against_champion": against,
        "per_attack_type": {
            kind: {"sessions": sessions, "against_champion": {"utility": found}}
            for kind, (sessions, found) in (types or {}).items()
        },
    }


def test_the_champion_is_compared_on_the_same_episodes_overall_and_by_type(
    episodes: Episodes,
) -> None:
    found = evaluate.evaluate_policies(
        policies.always_terminate, episodes, {}, champion=policies.never_act
    )
    against = found["against_champion"]
    assert against["utility"]["mean"] == pytest.approx(found["advantage_mean"]["never_act"])
    assert against["utility"]["interval"] == pytest.approx(found["advantage"]["never_act"])
    assert against["benign_interruption"] == {"mean": 1.0, "interval": [1.0, 1.0]}
    assert against["review_load"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    parts = found["per_attack_type"].values()
    total = sum(one["against_champion"]["utility"]["mean"] * one["episodes"] for one in parts)
    assert total / len(episodes) == pytest.approx(against["utility"]["mean"])
    alone = evaluate.evaluate_policies(policies.always_terminate, episodes, {})
    assert alone["against_champion"] is None
    assert "champion" not in alone["policies"]


def test_without_a_champion_there_is_nothing_to_be_worse_than() -> None:
    verdict = evaluation_gates.not_worse_than_champion(table(), BOUNDS)
    assert verdict.passed
    assert "no champion" in verdict.reason


@given(st.floats(-1, 1), st.floats(0, 1))
def test_a_challenger_passes_where_the_lower_bound_is_above_minus_delta(
    mean: float, half: float
) -> None:
    found = table(champion={"utility": pair(mean, half)})
    verdict = evaluation_gates.not_worse_than_champion(found, BOUNDS)
    assert verdict.passed == (mean - half > -BOUNDS.delta)
    assert verdict.severity == "ERROR"


def test_what_is_worse_and_what_is_merely_not_shown_are_told_apart() -> None:
    worse, unsure = (
        evaluation_gates.not_worse_than_champion(
            table(champion={"utility": pair(-1.0, half)}), BOUNDS
        )
        for half in (0.5, 2.0)
    )
    assert "overall: worse" in worse.reason
    assert "overall: not shown to be no worse" in unsure.reason


def test_a_type_is_judged_only_where_enough_sessions_tell_of_it() -> None:
    bad = pair(-3.0)
    for sessions, passes in ((BOUNDS.type_sessions, False), (BOUNDS.type_sessions - 1, True)):
        found = table(champion={}, types={"ransomware": (sessions, bad), "benign": (20, pair(0))})
        verdict = evaluation_gates.not_worse_than_champion(found, BOUNDS)
        assert verdict.passed is passes
        assert verdict.figures["types"]["ransomware"]["mean"] == -3.0
    assert verdict.figures["judged_types"] == ["benign"]


def test_one_held_out_session_replaces_no_champion() -> None:
    found = table(champion={"utility": pair(5.0, None)})
    verdict = evaluation_gates.not_worse_than_champion(found, BOUNDS)
    assert (verdict.passed, verdict.severity) == (False, "ERROR")
    assert "too few" in verdict.reason


@given(st.integers(0, 400), st.integers(1, 3000))
def test_interruption_is_within_budget_where_its_exact_bound_is(hits: int, benign: int) -> None:
    hits = min(hits, benign)
    interval = clopper_pearson(hits, benign)
    assert interval is not None
    verdict = evaluation_gates.interruption_within_budget(
        table(interrupted=hits, benign=benign), BOUNDS
    )
    assert verdict.passed == (interval[1] <= BOUNDS.interruption_budget)
    if not verdict.passed:
        assert verdict.severity == "WARN"  # nothing serves yet


def test_beside_a_champion_too_many_interruptions_refuse() -> None:
    more, as_many = (
        evaluation_gates.interruption_within_budget(
            table(interrupted=40, champion={"benign_interruption": pair(mean)}), BOUNDS
        )
        for mean in (0.01, 0.0)
    )
    assert (more.passed, more.severity) == (False, "ERROR")
    assert as_many.passed


@given(st.floats(0.001, 0.5))
def test_the_number_of_benign_episodes_that_is_asked_for_is_enough_and_one_less_is_not(
    budget: float,
) -> None:
    bounds = Gates(interruption_budget=budget)
    champion = {"benign_interruption": pair(0.01)}
    short = evaluation_gates.interruption_within_budget(table(benign=2, champion=champion), bounds)
    if short.passed:
        return
    needed = short.figures["benign_needed"]
    assert short.severity == "WARN"
    assert str(needed) in short.reason
    assert evaluation_gates.interruption_within_budget(table(benign=needed), bounds).passed
    assert not evaluation_gates.interruption_within_budget(table(benign=needed - 1), bounds).passed


def test_no_benign_episode_at_all_is_a_warning() -> None:
    found = table()
    found["malicious"] = found["episodes"]
    found["policies"]["drl"]["benign_interruption"] = None
    found["intervals"]["drl"]["benign_interruption"] = None
    verdict = evaluation_gates.interruption_within_budget(found, BOUNDS)
    assert (verdict.passed, verdict.severity) == (False, "WARN")


BASELINES = {
    "threshold_rule": {"utility": -2.0, "folds": 0},
    "gradient_boosting": {"utility": 0.0, "folds": 0},
    "logistic_regression": {"utility": -1.0, "folds": 3},
    "report_dqn": {},
}


def test_the_supervised_baseline_is_chosen_by_its_tuning_and_not_by_the_held_out_episodes() -> None:
    over = {
        "threshold_rule": pair(-9.0),  # would be the best here, by luck
        "logistic_regression": pair(0.5),
        "gradient_boosting": pair(-9.0),  # its utility is of the rows that it was fitted on
    }
    verdict = evaluation_gates.not_worse_than_supervised(table(advantage=over), BASELINES, BOUNDS)
    assert verdict.passed
    assert verdict.figures["best"] == "logistic_regression"


@pytest.mark.parametrize(("champion", "severity"), [(None, "WARN"), ({}, "ERROR")])
def test_worse_than_the_best_supervised_baseline_refuses_beside_a_champion(
    champion: dict[str, Pair] | None, severity: str
) -> None:
    for mean, half, passed in ((-1.0, 0.5, False), (-1.0, 1.5, True), (0.2, 0.1, True)):
        found = table(champion=champion, advantage={"logistic_regression": pair(mean, half)})
        verdict = evaluation_gates.not_worse_than_supervised(found, BASELINES, BOUNDS)
        assert (verdict.passed, verdict.severity) == (passed, severity)


def test_where_no_baseline_could_be_tuned_or_compared_it_is_a_warning() -> None:
    none = evaluation_gates.not_worse_than_supervised(table(), {}, BOUNDS)
    over = {"logistic_regression": pair(0.0, None)}
    unsure = evaluation_gates.not_worse_than_supervised(table(advantage=over), BASELINES, BOUNDS)
    for verdict in (none, unsure):
        assert (verdict.passed, verdict.severity) == (False, "WARN")


@pytest.mark.parametrize(
    ("review", "champion", "passed", "severity"),
    [
        (0.4, None, True, "ERROR"),
        (0.54, None, True, "ERROR"),  # its lower bound is within the cap
        (0.9, None, False, "WARN"),
        (0.9, {"review_load": pair(0.1)}, False, "ERROR"),
        (0.9, {"review_load": pair(-0.1)}, True, "ERROR"),
    ],
)
def test_reviewing_everything_is_no_policy(
    review: float, champion: dict[str, Pair] | None, passed: bool, severity: str
) -> None:
    verdict = evaluation_gates.review_within_cap(table(review=review, champion=champion), BOUNDS)
    assert (verdict.passed, verdict.severity) == (passed, severity)


def test_a_policy_that_does_harm_is_refused_at_the_first_release_too() -> None:
    found = table(advantage={"never_act": pair(-1.0)})
    verdict = evaluation_gates.not_worse_than_doing_nothing_or_everything(found)
    assert (verdict.passed, verdict.severity) == (False, "ERROR")
    assert verdict.reason == "worse than never_act"
