"""Sessions are left out whole, evenly, and for good."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.learners import cross_fitting

sessions = st.lists(st.tuples(st.booleans(), st.integers(1, 3)), min_size=1, max_size=25)


def rows_of(sessions: list[tuple[bool, int]], seed: int, first: int = 0) -> Columns:
    """Rows of sessions (malicious, how many rows), of names of no order, mixed."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(100)[first:][: len(sessions)] + 10**18
    session = np.repeat(names, [n for _, n in sessions])
    malicious = np.repeat([bad for bad, _ in sessions], [n for _, n in sessions])
    order = rng.permutation(len(session))
    return {
        "session": session[order],
        "malicious": malicious[order],
        "fold": np.full(len(session), -1, dtype=np.int8),
    }


def per_class(rows: Columns, fold: np.ndarray, members: int) -> list[np.ndarray]:
    """Sessions of each class in each fold."""
    _, at = np.unique(rows["session"], return_index=True)
    kind = rows["malicious"][at]
    return [np.bincount(fold[at][kind == one], minlength=members) for one in (False, True)]


@settings(max_examples=200, deadline=None)
@given(sessions=sessions, members=st.integers(1, 6), seed=st.integers(0, 1000))
def test_sessions_are_dealt_out_evenly_within_each_class(
    sessions: list[tuple[bool, int]], members: int, seed: int
) -> None:
    rows = rows_of(sessions, seed)
    fold, validated = cross_fitting.assign_folds(rows, members)
    malicious = sum(bad for bad, _ in sessions)
    assert validated == (members >= 2 and min(malicious, len(sessions) - malicious) >= 2)
    assert fold.dtype == np.int8
    if not validated:
        assert (fold == -1).all()
        return
    for name in np.unique(rows["session"]):
        assert len(np.unique(fold[rows["session"] == name])) == 1, "whole sessions"
    assert fold.min() >= 0
    assert fold.max() < members
    for sizes in per_class(rows, fold, members):
        assert sizes.max() - sizes.min() <= 1
        assert (sizes > 0).sum() >= 2, "no member leaves a whole class out"


@settings(max_examples=200, deadline=None)
@given(old=sessions, new=sessions, members=st.integers(2, 5), seed=st.integers(0, 1000))
def test_a_session_keeps_its_fold_when_others_come(
    old: list[tuple[bool, int]], new: list[tuple[bool, int]], members: int, seed: int
) -> None:
    past = rows_of(old, seed)
    past["fold"], before = cross_fitting.assign_folds(past, members)
    more = rows_of(new, seed, first=len(old))
    rows = {name: np.concatenate((past[name], more[name])) for name in past}
    fold, validated = cross_fitting.assign_folds(rows, members)
    if before:
        assert validated
        np.testing.assert_array_equal(fold[: len(past["fold"])], past["fold"])
    if validated:
        for sizes in per_class(rows, fold, members):
            assert sizes.max() - sizes.min() <= 1, "newcomers even the folds out"


def test_a_session_of_both_kinds_is_a_malicious_one() -> None:
    rows = {
        "session": np.array([1, 1, 2, 3, 4]),
        "malicious": np.array([False, True, True, False, False]),
        "fold": np.full(5, -1, dtype=np.int8),
    }
    fold, validated = cross_fitting.assign_folds(rows, 2)
    assert validated
    assert fold[0] == fold[1] != fold[2]
    assert fold[3] != fold[4]


def test_a_class_that_the_replay_has_left_in_one_fold_is_assigned_anew() -> None:
    rows = {
        "session": np.array([1, 2, 3, 4]),
        "malicious": np.array([False, False, True, True]),
        "fold": np.array([0, 1, 1, 1], dtype=np.int8),
    }
    fold, validated = cross_fitting.assign_folds(rows, 2)
    assert validated
    assert set(fold[:2]) == set(fold[2:]) == {0, 1}
