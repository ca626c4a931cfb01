"""Episodes over many batches: the fold goes on, redelivered windows go, late ones are marked."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_assets.tables import continuity, transforms
from drl_assets.tables.episode_progress import EpisodeKey, EpisodeProgress
from drl_core.telemetry.event import Event


def events(steps: list[int], episode: str = "e") -> list[Event]:
    return [Event(episode_id=episode, step=n, syscall_count=10.0**n) for n in steps]


def _union(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """As the database gives them back: ascending and apart."""
    joined: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((first, end))
    return joined


class Batches:
    """Batch after batch as the asset graph takes them, the past kept in memory."""

    def __init__(self) -> None:
        self.past: dict[EpisodeKey, EpisodeProgress] = {}
        self.states: list[pl.DataFrame] = []

    def take(self, batch: list[Event], key: str = "k") -> tuple[pl.DataFrame, int]:
        frame, dropped = continuity.drop_seen(transforms.telemetry_frame([batch]).frame, self.past)
        ordered = frame.filter(~pl.col("late"))
        names = continuity.episodes_of(ordered)
        states, after = transforms.state_frame(ordered, continuity.carries(names, self.past))
        ends = dict(zip(names, after, strict=True))
        for row in continuity.progress_after(frame, self.past, ends, key):
            name = (row.sandbox_id, row.episode_id)
            before = self.past[name].steps if name in self.past else []
            steps = _union([*before, *row.steps])
            self.past[name] = EpisodeProgress(*name, key, steps, row.carry)
        self.states.append(states)
        return frame, dropped


@pytest.mark.property(5)
@pytest.mark.property(8)
@pytest.mark.property(12)
@settings(max_examples=100, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 12), max_size=4),
    again=st.lists(st.integers(0, 11), max_size=6),
)
def test_any_split_into_batches_with_redeliveries_gives_the_states_of_one(
    cuts: list[int], again: list[int]
) -> None:
    whole = [e for name in ("a", "b") for e in events(list(range(12)), name)]
    expected = transforms.state_frame(transforms.telemetry_frame([whole]).frame).frame
    batches, low = Batches(), 0
    for high in [*sorted(cuts), 12]:
        stretch = list(range(low, high)) + [n for n in again if n < high]
        batches.take([e for name in ("b", "a") for e in events(stretch, name)])
        low = high
    got = pl.concat(batches.states).sort(transforms.KEYS)
    assert got.select(transforms.KEYS).equals(expected.select(transforms.KEYS))
    np.testing.assert_allclose(got["state"].to_numpy(), expected["state"].to_numpy(), atol=1e-6)


@pytest.mark.property(5)
def test_a_window_of_an_earlier_batch_is_dropped() -> None:
    batches = Batches()
    batches.take(events([0, 1, 2]))
    before = dict(batches.past)
    frame, dropped = batches.take(events([2, 0, 1, 1]))
    assert (len(frame), dropped) == (0, 3)
    assert batches.past == before


@pytest.mark.property(6)
def test_a_gap_between_batches_is_flagged_and_what_fills_it_is_late() -> None:
    batches = Batches()
    batches.take(events([0, 1]) + events([0, 1, 2, 3, 4], "other"))
    frame, _ = batches.take(events([4, 5]) + events([5], "other"))
    assert frame["gap"].to_list() == [True, False, False]
    assert not frame["late"].any()
    frame, dropped = batches.take(events([5, 3, 2, 6]))
    rows = list(frame.select("step", "late", "gap").iter_rows())
    assert (rows, dropped) == ([(2, True, False), (3, True, False), (6, False, False)], 1)
    assert batches.past["default", "e"].steps == [(0, 7)]
    _, dropped = batches.take(events([0, 1, 2, 3, 4, 5, 6]))
    assert dropped == 7


@pytest.mark.property(19)
def test_a_part_of_an_episode_goes_on_from_its_carry_and_is_no_terminal() -> None:
    labelled = [Event(episode_id="e", step=n, is_malicious=True) for n in range(4)]
    first = transforms.experiences_of([labelled[:2]])
    assert first["truncated"].to_list() == [False, True]
    assert not first["terminated"].any()
    assert not first["terminal"].to_numpy()[:, :2].any()
    batches = Batches()
    batches.take(labelled[:2])
    carry = continuity.carries([("default", "e")], batches.past)
    np.testing.assert_allclose(carry[0, 12:], [2.0, 2.0])
    assert continuity.carries([("default", "new")], batches.past).sum() == 0
