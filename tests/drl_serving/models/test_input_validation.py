"""Raw rows: what the fold could have made passes, everything else is refused and named."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_core.policy.features import Array, start, step
from drl_serving.http.problems import Problem
from drl_serving.models.input_validation import _name_the_wrong, is_sound, validate


def sound(rows: int = 3, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    windows = np.zeros((rows, 14))
    windows[:, :7] = np.expm1(rng.uniform(0, 80, (rows, 7)))
    windows[:, 7:9] = rng.uniform(0, 500, (rows, 2))
    windows[:, 9:12] = rng.integers(0, 2, (rows, 3))
    windows[:, :12][rng.random((rows, 12)) < 0.3] = np.nan
    windows[:, 12] = rng.uniform(0.001, 86400, rows)
    windows[:, 13] = rng.integers(0, 4, rows)
    return windows, start(rows)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), steps=st.integers(1, 30))
def test_whatever_the_fold_makes_of_sound_windows_is_sound(seed: int, steps: int) -> None:
    windows, carry = sound(4, seed)
    for _ in range(steps):
        validate(windows, carry)
        _, carry = step(np, windows, carry)
    validate(windows, carry)


WRONG: list[tuple[str, Callable[[Array, Array], object]]] = [
    ("windows[1][0]", lambda w, c: w.__setitem__((1, 0), np.inf)),
    ("windows[1][0]", lambda w, c: w.__setitem__((1, 0), -np.inf)),
    ("windows[2][4]", lambda w, c: w.__setitem__((2, 4), -1.0)),
    ("windows[2][4]", lambda w, c: w.__setitem__((2, 4), 1e39)),
    ("windows[0][9]", lambda w, c: w.__setitem__((0, 9), 0.5)),
    ("windows[0][12]", lambda w, c: w.__setitem__((0, 12), 0.0)),
    ("windows[0][12]", lambda w, c: w.__setitem__((0, 12), np.nan)),
    ("windows[0][12]", lambda w, c: w.__setitem__((0, 12), 86401.0)),
    ("windows[0][13]", lambda w, c: w.__setitem__((0, 13), 4.0)),
    ("windows[0][13]", lambda w, c: w.__setitem__((0, 13), 1.5)),
    ("windows[0][13]", lambda w, c: w.__setitem__((0, 13), np.nan)),
    ("carry[0][3]", lambda w, c: c.__setitem__((0, 3), np.nan)),
    ("carry[0][3]", lambda w, c: c.__setitem__((0, 3), 0.5)),
    ("carry[1][12]", lambda w, c: c.__setitem__((1, 12), -1.0)),
    ("carry[1][12]", lambda w, c: c.__setitem__((1, 12), 0.5)),
    ("carry[1][12]", lambda w, c: c.__setitem__((1, 12), np.inf)),
    ("carry[1][13]", lambda w, c: c.__setitem__((1, 13), 1.0)),
]


@pytest.mark.parametrize(("field", "spoil"), WRONG)
def test_a_value_outside_the_contract_is_refused_by_name(
    field: str, spoil: Callable[[Array, Array], object]
) -> None:
    windows, carry = sound()
    spoil(windows, carry)
    with pytest.raises(Problem) as refused:
        validate(windows, carry)
    assert (refused.value.status, refused.value.field) == (400, field)


@pytest.mark.parametrize(
    ("windows", "carry"),
    [
        (np.zeros((1, 13)), np.zeros((1, 14))),
        (np.zeros(14), np.zeros((1, 14))),
        (np.zeros((0, 14)), np.zeros((0, 14))),
        (np.zeros((1, 14), dtype=np.float32), np.zeros((1, 14))),
        (sound(2)[0], np.zeros((1, 14))),
    ],
)
def test_another_shape_or_type_is_refused(windows: Array, carry: Array) -> None:
    with pytest.raises(Problem) as refused:
        validate(windows, carry)
    assert refused.value.status == 400


ODD = st.sampled_from([0.0, 1.0, 0.5, -1.0, 3.0, 4.0, 1e39, -0.0, np.nan, np.inf, -np.inf, 2.0**32])


@settings(max_examples=300, deadline=None)
@given(data=st.data(), rows=st.integers(1, 4))
def test_whatever_is_not_sound_is_named_and_nothing_else(data: st.DataObject, rows: int) -> None:
    windows, carry = sound(rows)
    for _ in range(data.draw(st.integers(0, 4))):
        table = data.draw(st.sampled_from([windows, carry]))
        table[data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, 13))] = data.draw(ODD)
    try:
        _name_the_wrong(windows, carry)
    except Problem:
        assert not is_sound(windows, carry)
    else:
        assert is_sound(windows, carry)
