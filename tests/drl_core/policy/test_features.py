"""The fold: 30 bounded features, the same however windows are split, and blind to labels."""

from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_core.policy import features
from drl_core.policy.features import CARRY_WIDTH, FEATURE_COUNT, FEATURES, WINDOW_WIDTH
from drl_core.telemetry.event import Event
from tests import strategies
from tests.strategies import FLOAT32_MAX

AT = {name: column for column, name in enumerate(FEATURES)}


def rows_of(events: list[Event]) -> features.Array:
    return np.stack([features.window(event) for event in events])


def marks(lengths: list[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    first = np.zeros(sum(lengths), dtype=np.bool_)
    first[np.cumsum([0, *lengths[:-1]])] = True
    return first


def row_by_row(windows: features.Array) -> tuple[features.Array, features.Array]:
    carry, states = features.start(), []
    for window in windows:
        state, carry = features.step(np, window[None], carry)
        states.append(state[0])
    return np.array(states), carry


def random_windows(count: int, seed: int) -> features.Array:
    rng = np.random.default_rng(seed)
    windows = np.zeros((count, WINDOW_WIDTH))
    windows[:, :9] = np.expm1(rng.uniform(0, 20, (count, 9)))
    windows[:, 9:12] = rng.integers(0, 2, (count, 3))
    windows[:, :12][rng.random((count, 12)) < 0.2] = np.nan
    windows[:, 12] = rng.choice([0.001, 1.0, 86_400.0], count)
    windows[:, 13] = rng.integers(0, 4, count)
    return windows


@pytest.mark.property(9)
@pytest.mark.property(10)
@settings(max_examples=100, deadline=None)
@given(events=st.lists(strategies.events(), min_size=1, max_size=3))
def test_every_event_gives_30_entries_in_0_to_1(events: list[Event]) -> None:
    states, carry = features.fold(rows_of(events), marks([len(events)]))
    assert states.shape == (len(events), FEATURE_COUNT) == (len(events), 30)
    assert np.isfinite(states).all()
    assert (states >= 0).all()
    assert (states <= 1).all()
    assert np.isfinite(carry).all()


@pytest.mark.property(10)
def test_extremes_stay_bounded_over_a_long_episode() -> None:
    event = Event(
        episode_id="e",
        step=0,
        window_s=0.001,
        **dict.fromkeys(strategies.COUNTS, FLOAT32_MAX),
        **dict.fromkeys(strategies.FLAGS, True),
    )
    states, _ = features.fold(np.repeat(rows_of([event]), 20_000, axis=0), marks([20_000]))
    assert np.isfinite(states).all()
    assert (states >= 0).all()
    assert (states <= 1).all()


@pytest.mark.property(11)
@pytest.mark.parametrize("name", features.SIGNALS)
def test_null_is_counted_and_differs_from_zero_in_measured_alone(name: str) -> None:
    everything = dict.fromkeys(strategies.COUNTS, 0.0) | dict.fromkeys(strategies.FLAGS, False)
    whole = Event(episode_id="e", step=0, **everything)
    lacking = msgspec.structs.replace(whole, **{name: None})
    zero, null = (features.step(np, rows_of([e]), features.start())[0][0] for e in (whole, lacking))
    assert list(np.flatnonzero(zero != null)) == [AT["measured"]] == [28]
    assert (zero[28], null[28]) == (1.0, pytest.approx(11 / 12))


def test_the_table_is_the_specified_one() -> None:
    windows = rows_of(
        [
            Event(
                episode_id="e",
                step=0,
                window_s=2.0,
                isolation_level=2,
                syscall_count=2000,
                file_read_count=30,
                file_write_count=10,
                network_connections=4,
                bytes_sent=300,
                bytes_received=100,
                child_processes=2,
                cpu_usage=50,
                memory_usage=512,
                registry_modification=True,
                privilege_escalation_attempt=False,
            ),
            Event(episode_id="e", step=1, window_s=2.0),
        ]
    )

    def n(x: float, hi: float) -> float:
        return float(np.clip(np.log1p(x) / np.log1p(hi), 0, 1))

    now = [
        *(n(1000, 1e6), n(15, 1e5), n(5, 1e5), n(2, 1e3), n(150, 1e9), n(50, 1e9), n(1, 1e3)),
        *(0.5, n(512, 65536), 1.0, 0.0, 0.0),
    ]
    ends = [0.25, 0.75, n(200, 1e9), n(2, 3600), 11 / 12, 2 / 3]
    states, _ = features.fold(windows, marks([2]))
    np.testing.assert_allclose(states[0], [*now, *now, *ends], atol=1e-6)
    later = [*[0.0] * 12, *(np.array(now) / 2), 0.0, 0.0, 0.0, n(4, 3600), 0.0, 0.0]
    np.testing.assert_allclose(states[1], later, atol=1e-6)


@pytest.mark.property(12)
@pytest.mark.property(13)
@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    seed=st.integers(0, 2**32),
)
def test_any_split_into_batches_gives_the_same_states(
    lengths: list[int], cuts: list[float], seed: int
) -> None:
    windows, first = random_windows(sum(lengths), seed), marks(lengths)
    whole, after = features.fold(windows, first)
    # each batch takes a stretch of every episode and goes on from its carry
    carry, parts = features.start(len(lengths)), [[] for _ in lengths]
    starts = np.cumsum([0, *lengths[:-1]])
    edges = [0.0, *sorted(cuts), 1.0]
    for low, high in pairwise(edges):
        chosen = [
            (e, range(s + round(low * n), s + round(high * n)))
            for e, (s, n) in enumerate(zip(starts, lengths, strict=True))
        ]
        chosen = [(e, rows) for e, rows in chosen if len(rows)]
        if not chosen:
            continue
        owners = [e for e, _ in chosen]
        rows = np.concatenate([list(r) for _, r in chosen])
        states, ends = features.fold(
            windows[rows], marks([len(r) for _, r in chosen]), carry[owners]
        )
        carry[owners] = ends
        for (e, r), part in zip(
            chosen, np.split(states, np.cumsum([len(r) for _, r in chosen])[:-1]), strict=True
        ):
            assert len(part) == len(r)
            parts[e].append(part)
    split = np.concatenate([np.concatenate(p) for p in parts])
    np.testing.assert_allclose(split, whole, atol=1e-6)
    np.testing.assert_allclose(carry, after, rtol=1e-9, atol=1e-6)
    for e, (s, n) in enumerate(zip(starts, lengths, strict=True)):
        one, end = row_by_row(windows[s : s + n])
        np.testing.assert_allclose(whole[s : s + n], one, atol=1e-6)
        np.testing.assert_allclose(after[e : e + 1], end, rtol=1e-9, atol=1e-6)


@pytest.mark.property(12)
@pytest.mark.parametrize(
    "lengths",
    [
        [features._CHUNK],
        [features._CHUNK, 3],
        [features._CHUNK - 1, 1, 1],
        [features._CHUNK + 1],
        [5, 3 * features._CHUNK, 7],
        [1] * (features._CHUNK + 2),
    ],
    ids=["exact", "exact-and-more", "border-starts-one", "one-over", "over-three", "many"],
)
def test_the_passes_of_the_fold_leave_no_seam(lengths: list[int]) -> None:
    windows = random_windows(sum(lengths), 3)
    windows[:, 12] = 1.0
    begin = np.abs(np.random.default_rng(4).normal(size=(len(lengths), CARRY_WIDTH)))
    begin[:, :13] = np.minimum(begin[:, :13], begin[:, 12:13])
    states, after = features.fold(windows, marks(lengths), begin)
    low = 0
    for e, length in enumerate(lengths[:40]):  # one by one, by plain running sums
        part = windows[low : low + length]
        now, rest = features.observe(np, part)
        add = np.column_stack((now, np.ones(length), part[:, 12]))
        sums = begin[e] + np.cumsum(add, axis=0)
        expected = features.assemble(np, now, rest, sums)
        np.testing.assert_allclose(states[low : low + length], expected, atol=1e-6)
        np.testing.assert_allclose(after[e], sums[-1], rtol=1e-9)
        low += length


def test_a_carry_from_an_earlier_batch_outweighs_nothing_of_another_episode() -> None:
    windows = random_windows(4, 0)
    heavy = np.full((2, CARRY_WIDTH), 1e9)
    heavy[1] = 0
    _, after = features.fold(windows, marks([2, 2]), heavy)
    _, alone = features.fold(windows[2:], marks([2]))
    np.testing.assert_allclose(after[1], alone[0], atol=1e-5)


@pytest.mark.property(14)
@settings(max_examples=100, deadline=None)
@given(event=strategies.events(), other=strategies.events())
def test_labels_outcomes_and_names_change_no_feature(event: Event, other: Event) -> None:
    kept = ("window_s", "isolation_level", *features.SIGNALS)
    renamed = msgspec.structs.replace(other, **{name: getattr(event, name) for name in kept})
    np.testing.assert_array_equal(features.window(event), features.window(renamed))


def test_shapes_that_do_not_fit_are_refused() -> None:
    windows = random_windows(3, 0)
    with pytest.raises(ValueError, match="expected"):
        features.fold(windows[:, :5], marks([3]))
    with pytest.raises(ValueError, match="first"):
        features.fold(windows, np.array([False, True, False]))
    with pytest.raises(ValueError, match="carry"):
        features.fold(windows, marks([2, 1]), features.start(3))
    states, after = features.fold(np.empty((0, WINDOW_WIDTH)), np.empty(0, dtype=np.bool_))
    assert states.shape == (0, FEATURE_COUNT)
    assert after.shape == (0, CARRY_WIDTH)
