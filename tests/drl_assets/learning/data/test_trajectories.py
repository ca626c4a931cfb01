"""Rows of the learners are what the replay environment shows and pays, at every isolation level."""

import copy
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_assets.learning.data import trajectories
from drl_assets.learning.data.environment import LockstepReplay
from drl_assets.learning.data.episodes import Episodes
from drl_assets.learning.data.trajectories import LEVELS, ROW_COLUMNS
from drl_core.policy import features
from drl_core.policy.actions import Action, allowed
from drl_core.telemetry.event import Event
from tests import strategies
from tests.drl_assets.learning.small import episodes_of

WATCH, ISOLATE = Action.CONTINUE_MONITORING, Action.INCREASE_ISOLATION

recordings = st.lists(strategies.episodes(max_windows=5), min_size=1, max_size=2)
mostly_unisolated = st.lists(
    strategies.episodes(max_windows=5, level=st.sampled_from([0, 0, 0, 1])), min_size=1, max_size=2
)


def named(recordings: list[list[Event]]) -> Episodes:
    events = [
        msgspec.structs.replace(event, episode_id=f"e{n}")
        for n, recording in enumerate(recordings)
        for event in recording
    ]
    return episodes_of(events)


@dataclass
class Seen:
    """What a window looks like to one who has isolated before."""

    level: int
    state: npt.NDArray[np.float64]
    rewards: npt.NDArray[np.float64]


def isolating(episodes: Episodes, level: int, since: int) -> list[Seen]:
    """One episode in the replay; isolated as often as it takes, so that window `since` is first."""
    replay, seen = LockstepReplay(episodes), []
    while len(replay.active):
        paid = np.full(len(Action), -np.inf)
        for action in np.flatnonzero(allowed(replay.level)[0]):
            paid[action] = copy.copy(replay).step(np.array([action]))[0][0]
        seen.append(Seen(int(replay.level[0]), replay.features[0], paid))
        raising = replay.time + 1 >= since and replay.level[0] < level
        replay.step(np.array([ISOLATE if raising else WATCH]))
    return seen


def agrees(rows: dict[str, npt.NDArray[np.generic]], row: int, index: int, seen: Seen) -> bool:
    """Whether a row is what was seen, as far as its level could be reached by then."""
    if seen.level != rows["level"][row, index]:
        return True
    rewards = rows["rewards"][row, index].astype(np.float64)
    finite = np.isfinite(rewards)
    return bool(
        np.allclose(rows["state"][row, index], seen.state, atol=1e-6)
        and np.array_equal(finite, np.isfinite(seen.rewards))
        and np.allclose(rewards[finite], seen.rewards[finite], rtol=1e-6, atol=1e-6)
    )


@pytest.mark.property(15)
@pytest.mark.property(18)
@settings(max_examples=100, deadline=None)
@given(recordings=mostly_unisolated, seed=st.integers(0, 2**32))
def test_a_row_at_a_level_is_what_the_replay_shows_and_pays_after_isolating(
    recordings: list[list[Event]], seed: int
) -> None:
    """From some window on as if isolated since then; in each before, as if isolated just now."""
    episodes = named(recordings)
    rows = trajectories.rows_of(episodes, np.random.default_rng(seed))
    for e in range(len(episodes)):
        one, low = episodes.select(np.array([e])), int(episodes.offsets[e])
        count = len(one.windows)
        for index in range(LEVELS):
            played = [isolating(one, index, since) for since in range(1, count + 1)]
            just_now = [
                agrees(rows, low + n, index, played[max(n, 1) - 1][n]) for n in range(count)
            ]
            assert any(
                all(just_now[:since])
                and all(
                    agrees(rows, low + n, index, played[min(since, count) - 1][n])
                    for n in range(since, count)
                )
                for since in range(1, count + 1)
            )


@pytest.mark.property(15)
@settings(max_examples=100, deadline=None)
@given(recordings=recordings, seed=st.integers(0, 2**32))
def test_rows_as_recorded_are_those_of_the_fold(recordings: list[list[Event]], seed: int) -> None:
    episodes = named(recordings)
    rows = trajectories.rows_of(episodes, np.random.default_rng(seed))
    states, _ = features.fold(episodes.windows, episodes.first, episodes.carry)
    recorded = trajectories.as_recorded(rows)
    np.testing.assert_allclose(recorded["state"], states, atol=1e-6)
    assert recorded["rewards"].shape == (len(states), len(Action))
    assert recorded["last"] is rows["last"]
    for name, (shape, dtype) in ROW_COLUMNS.items():
        assert (rows[name].shape, rows[name].dtype) == ((len(states), *shape), dtype), name


@pytest.mark.property(16)
@settings(max_examples=100, deadline=None)
@given(recordings=recordings, seed=st.integers(0, 2**32))
def test_levels_never_fall_below_the_recordings_and_ends_are_the_episodes(
    recordings: list[list[Event]], seed: int
) -> None:
    episodes = named(recordings)
    rows = trajectories.rows_of(episodes, np.random.default_rng(seed))
    own = episodes.windows[:, -1].astype(int)
    assert np.array_equal(rows["level"], np.maximum(own[:, None], np.arange(LEVELS)))
    assert np.array_equal(np.flatnonzero(rows["last"]), episodes.offsets[1:] - 1)
    assert np.array_equal(rows["terminated"][rows["last"]], episodes.ended)
    assert not rows["terminated"][~rows["last"]].any()
    assert np.array_equal(trajectories.starts(rows["last"]), episodes.offsets[:-1])
    for name in ("priority", "session", "attack_type", "malicious"):
        first = rows[name][episodes.offsets[:-1]]
        assert np.array_equal(rows[name], np.repeat(first, episodes.lengths)), name
    assert (rows["attack_type"][rows["malicious"]] != 0).all()
    assert not rows["attack_type"][~rows["malicious"]].any()


@settings(max_examples=100, deadline=None)
@given(name=st.text())
def test_the_hash_of_a_name_is_a_positive_number_of_its_own(name: str) -> None:
    assert 0 <= trajectories.name_hash(name) < 2**63
    assert trajectories.name_hash(name) != trajectories.name_hash(name + "x")
