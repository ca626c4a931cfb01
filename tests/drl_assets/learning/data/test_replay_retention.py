"""What the replay keeps when more has come than fits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_assets.learning.data import replay_retention
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.data.trajectories import starts

Trajectory = tuple[int, int]
"""(length, attack type; 0 is benign)."""

streams = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=60)


def rows_of(stream: list[Trajectory], seed: int = 0) -> Columns:
    """Trajectories in the order of arrival; `name` numbers them, `step` counts their rows."""
    lengths, types = (np.array(column) for column in zip(*stream, strict=True))
    last = np.zeros(lengths.sum(), dtype=np.bool_)
    last[np.cumsum(lengths) - 1] = True
    priority = np.random.default_rng(seed).random(len(stream), dtype=np.float32)
    return {
        "last": last,
        "malicious": (types > 0).repeat(lengths),
        "attack_type": types.repeat(lengths),
        "priority": priority.repeat(lengths),
        "name": np.arange(len(stream)).repeat(lengths),
        "step": np.concatenate([np.arange(n) for n in lengths]),
    }


def cut(rows: Columns, low: int, high: int) -> Columns:
    """Trajectories low..high - 1."""
    of = (rows["name"] >= low) & (rows["name"] < high)
    return {name: column[of] for name, column in rows.items()}


def names(rows: Columns) -> list[int]:
    return [int(n) for n in rows["name"][starts(rows["last"])]]


def merged(rows: Columns, edges: list[int], capacity: int) -> Columns:
    """The replay after the stream has come in batches that end at these trajectories."""
    replay = None
    for low, high in zip([0, *edges[:-1]], edges, strict=True):
        replay, _ = replay_retention.merge(replay, cut(rows, low, high), capacity)
    assert replay is not None
    return replay


@pytest.mark.property(21)
@settings(max_examples=200, deadline=None)
@given(stream=streams, capacity=st.integers(6, 120), at=st.integers(0, 60))
def test_whole_trajectories_stay_in_order_within_the_capacity(
    stream: list[Trajectory], capacity: int, at: int
) -> None:
    rows, at = rows_of(stream), min(at, len(stream) - 1)
    past = merged(rows, [at], capacity) if at else None
    replay, recent = replay_retention.merge(past, cut(rows, at, len(stream)), capacity)
    assert len(replay["last"]) == len(recent) <= capacity
    kept = names(replay)
    assert kept == sorted(set(kept))
    whole = cut(rows, 0, len(stream))
    of = np.isin(whole["name"], kept)
    for name, column in replay.items():
        np.testing.assert_array_equal(column, whole[name][of], err_msg=name)
    np.testing.assert_array_equal(recent, replay["name"] >= at)


@pytest.mark.property(21)
@settings(max_examples=200, deadline=None)
@given(stream=streams, capacity=st.integers(12, 120))
def test_the_newest_half_stays(stream: list[Trajectory], capacity: int) -> None:
    replay = merged(rows_of(stream), [len(stream)], capacity)
    lengths = np.array([n for n, _ in stream])
    from_the_end = np.cumsum(lengths[::-1])[::-1]
    newest = set(np.flatnonzero(from_the_end <= capacity // 2).tolist())
    assert newest <= set(names(replay))


@settings(max_examples=100, deadline=None)
@given(
    stream=st.lists(st.tuples(st.just(3), st.integers(0, 3)), min_size=41, max_size=80),
    seed=st.integers(0, 100),
)
def test_benign_and_malicious_stay_in_the_proportion_in_which_they_came(
    stream: list[Trajectory], seed: int
) -> None:
    """Of the older ones, since the newest stay whatever they are."""
    capacity = 120  # of the newest 20 trajectories and 20 older ones
    replay = merged(rows_of(stream, seed), [len(stream)], capacity)
    older = np.array([kind for _, kind in stream[:-20]])
    kept = np.array([stream[n][1] for n in names(replay) if n < len(stream) - 20])
    assert abs((kept > 0).sum() - 20 * (older > 0).mean()) <= 1
    for kind in set(older[older > 0].tolist()):
        others = len(set(older[older > 0].tolist()))
        if (kept > 0).sum() >= others:
            assert kind in kept, "a type that was there remains while there is room"


@settings(max_examples=100, deadline=None)
@given(
    stream=st.lists(st.tuples(st.just(3), st.just(1)), min_size=50, max_size=80),
    edges=st.sets(st.integers(1, 79), max_size=6),
    seed=st.integers(0, 100),
)
def test_the_sample_of_a_type_does_not_depend_on_how_the_batches_were_cut(
    stream: list[Trajectory], edges: set[int], seed: int
) -> None:
    rows, count = rows_of(stream, seed), len(stream)
    cuts = [*sorted(edge for edge in edges if edge < count), count]
    assert names(merged(rows, cuts, 120)) == names(merged(rows, [count], 120))


def test_of_a_type_the_older_ones_are_a_uniform_sample() -> None:
    """Each of 60 older trajectories stays about as often as every other."""
    stream = [(1, 1)] * 80
    stayed = np.zeros(60)
    for seed in range(600):
        replay = merged(rows_of(stream, seed), [30, 55, 80], 40)
        stayed[[n for n in names(replay) if n < 60]] += 1
    assert stayed.sum() == 600 * 20
    expected = stayed.mean()
    chi_square = ((stayed - expected) ** 2 / (expected * (1 - 20 / 60))).sum()
    assert chi_square < 100  # 59 degrees of freedom: exceeded once in two thousand


def test_of_a_trajectory_that_is_longer_than_the_capacity_the_last_rows_stay() -> None:
    replay, recent = replay_retention.merge(None, rows_of([(3, 0), (50, 1)]), 20)
    assert replay["step"].tolist() == list(range(30, 50))
    assert replay["last"].tolist() == [False] * 19 + [True]
    assert recent.all()
