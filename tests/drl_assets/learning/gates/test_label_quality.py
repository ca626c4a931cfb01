"""A champion's opinion of new labels: turned ones are refused, surprising ones are a warning."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drl_assets.learning.data.episodes import Bools, Floats
from drl_assets.learning.gates import label_quality
from drl_assets.learning.gates.label_quality import Predictions
from drl_assets.learning.learners.networks import PosteriorQNetwork
from drl_core.settings import Gates


def opinion(
    episodes: int = 200, seed: int = 0, sessions: int = 20, strength: float = 2.0
) -> Predictions:
    """Of a champion that is often right."""
    rng = np.random.default_rng(seed)
    malicious = rng.random(episodes) < 0.5
    return labelled(
        strength * np.where(malicious, 1, -1) + rng.standard_normal(episodes),
        malicious,
        [str(one) for one in rng.integers(sessions, size=episodes)],
    )


def labelled(logit: Floats, malicious: Bools, session: list[str]) -> Predictions:
    surprise = np.logaddexp(0, np.where(malicious, -logit, logit))
    return Predictions(logit, surprise, malicious, session)


def turned(of: Predictions, where: Bools) -> Predictions:
    return labelled(of.logit, of.malicious ^ where, of.session)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), max_size=20),
)
def test_the_area_under_the_curve_is_the_share_of_pairs(
    rows: list[tuple[int, bool, int]],
) -> None:
    score, bad = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], bool)
    weight = np.array([r[2] for r in rows], float)
    pairs = [
        (a[2] * b[2], (a[0] > b[0]) + (a[0] == b[0]) / 2)
        for a, b in itertools.product(rows, rows)
        if a[1] and not b[1]
    ]
    total = sum(w for w, _ in pairs)
    found = label_quality.area_under_curve(score, bad, weight)
    if not total:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(sum(w * wins for w, wins in pairs) / total)


def test_honest_labels_pass() -> None:
    verdict = label_quality.labels_consistent(opinion(), opinion(seed=1), Gates())
    assert verdict.passed
    assert verdict.figures["auc_on_new_labels"] > 0.9


def test_turned_labels_are_refused() -> None:
    new = opinion(seed=1)
    wrong = turned(new, np.ones(len(new.logit), dtype=np.bool_))
    verdict = label_quality.labels_consistent(opinion(), wrong, Gates())
    assert (verdict.passed, verdict.severity) == (False, "ERROR")
    assert "turned round" in verdict.reason
    seen = label_quality.labels_consistent(opinion(), wrong, Gates(label_auc=0.0))
    assert (seen.passed, seen.severity) == (False, "WARN")  # a person has looked at them


def test_a_champion_that_knows_nothing_accuses_nobody() -> None:
    new = opinion(seed=1)
    wrong = turned(new, np.ones(len(new.logit), dtype=np.bool_))
    verdict = label_quality.labels_consistent(opinion(strength=0.0), wrong, Gates())
    assert verdict.severity == "WARN" or verdict.passed


def test_an_attack_that_looks_benign_is_a_warning_that_names_its_sessions() -> None:
    new = opinion(episodes=400, seed=1, strength=4.0)
    unknown = {str(one) for one in range(8)}
    novel = np.array([name in unknown for name in new.session])
    malicious = new.malicious | novel
    logit = np.where(novel, -9.0, new.logit)
    verdict = label_quality.labels_consistent(
        opinion(strength=4.0), labelled(logit, malicious, new.session), Gates()
    )
    assert (verdict.passed, verdict.severity) == (False, "WARN")
    assert set(verdict.figures["most_surprising_sessions"]) < unknown


def test_one_session_of_a_class_tells_nothing() -> None:
    new = opinion(seed=1, sessions=1)
    verdict = label_quality.labels_consistent(opinion(), new, Gates())
    assert (verdict.passed, verdict.severity) == (False, "WARN")


def network() -> PosteriorQNetwork:
    """Two members: one always says +1, the other -2, whatever they see."""
    made = PosteriorQNetwork([3], 2)
    with torch.no_grad():
        made.biases[-1][0, 0, 0], made.biases[-1][1, 0, 0] = 1.0, -2.0
        made.slope.fill_(2.0)
        made.offset.fill_(0.5)
    return made


def test_each_row_is_judged_by_the_member_that_has_not_seen_its_session() -> None:
    states, malicious = np.zeros((5, 30)), np.array([True, True, False, False, False])
    first = np.array([True, False, True, False, True])
    fold = np.array([0, 0, 1, 1, -1])
    found = label_quality.predict(network(), states, malicious, list("aabbc"), first, fold)
    np.testing.assert_allclose(found.logit, [2.5, -3.5, -0.5])
    np.testing.assert_allclose(found.surprise, np.logaddexp(0, [-2.5, -3.5, -0.5]))
    assert found.malicious.tolist() == [True, False, False]
    assert found.session == ["a", "b", "c"]
    everyone = label_quality.predict(network(), states, malicious, list("aabbc"), first)
    np.testing.assert_allclose(everyone.logit, [-0.5, -0.5, -0.5])


def test_the_replay_is_cut_at_the_ends_of_its_episodes() -> None:
    rows = {
        "state": np.zeros((4, 2, 30), np.float32),
        "malicious": np.array([True, True, False, False]),
        "session": np.array([1, 1, 2, 2]),
        "last": np.array([False, True, False, True]),
        "fold": np.array([0, 0, 1, 1], np.int8),
    }
    found = label_quality.predict_out_of_fold(network(), rows)
    assert dataclasses.asdict(found)["session"] == ["1", "2"]
    np.testing.assert_allclose(found.logit, [2.5, -3.5])
