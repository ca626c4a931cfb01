"""Action selection: the vectorised rule is the stated rule, row by row."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_core.policy.actions import Action
from drl_serving.decisions.engine.action_selection import explain, mask, select, select_actions

# few distinct values, so that ties and leads of exactly the margin come often
q_value = st.sampled_from([-1.5, 0.0, 0.25, 0.5, 1.0, 3.0]) | st.floats(-100, 100, width=32)
row = st.tuples(st.lists(q_value, min_size=5, max_size=5), st.integers(0, 3))


def reference(q_values: list[float], level: int, margin: float) -> int:
    """The rule as the module's text states it, for one row."""
    allowed = [a for a in Action if not (level == 3 and a is Action.INCREASE_ISOLATION)]
    best = allowed[0]
    for action in allowed:
        if q_values[action] > q_values[best]:
            best = action
    if best not in (Action.TERMINATE_PROCESS, Action.QUARANTINE_FILE):
        return best
    other = allowed[0]
    for action in allowed:
        contains = action in (Action.TERMINATE_PROCESS, Action.QUARANTINE_FILE)
        if not contains and q_values[action] > q_values[other]:
            other = action
    return other if q_values[best] - q_values[other] < margin else best


@settings(max_examples=500, deadline=None)
@given(
    rows=st.lists(row, min_size=1, max_size=20),
    margin=st.sampled_from([0.0, 0.25, 0.5, 2.0]) | st.floats(0, 5),
)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_every_row_follows_the_rule(
    rows: list[tuple[list[float], int]], margin: float, kind: type
) -> None:
    q_values = np.array([values for values, _ in rows], dtype=kind)
    levels = np.array([float(level) for _, level in rows])
    actions = select_actions(q_values, levels, margin)
    expected = [reference(values, level, margin) for values, level in rows]
    assert actions.tolist() == expected
    for (values, level), action in zip(rows, expected, strict=True):
        masked = mask(values, level)
        assert select(masked, margin) == action
        confidence, reason = explain(action, masked, level, margin)
        weights = [math.exp(v - max(masked)) for v in masked]
        assert confidence == weights[action] / sum(weights)
        assert ("Masked at isolation level 3" in reason) == (level == 3)
        chosen = Action(action).label
        if "margin" in reason:
            assert f"so {chosen}." in reason
        else:
            assert reason.startswith(f"{chosen} has the highest Q-value")
