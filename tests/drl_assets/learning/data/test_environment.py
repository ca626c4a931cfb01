"""Replay of recorded episodes: hindsight and stepping agree, for every action at every step."""

import warnings

import numpy as np
import polars as pl
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_assets.learning.data.environment import ContainmentEnv, LockstepReplay
from drl_assets.learning.data.episodes import NETWORK, Episodes, from_experiences, isolated
from drl_assets.tables import transforms
from drl_core.policy import features
from drl_core.policy.actions import TERMINAL, Action
from drl_core.telemetry.event import Event
from tests import strategies

WATCH, ISOLATE = Action.CONTINUE_MONITORING, Action.INCREASE_ISOLATION


def recorded(*recordings: list[Event]) -> tuple[pl.DataFrame, Episodes]:
    frame = transforms.experiences_of([[e for events in recordings for e in events]])
    return frame, from_experiences(frame)


@pytest.mark.property(15)
@pytest.mark.property(16)
@pytest.mark.property(18)
@settings(max_examples=25, deadline=None)
@given(events=strategies.episodes(max_windows=3))
def test_the_hindsight_rewards_are_those_of_stepping_with_each_action(events: list[Event]) -> None:
    frame, episodes = recorded(events)
    rewards, terminal = frame["rewards"].to_numpy(), frame["terminal"].to_numpy()
    states, last = frame["state"].to_numpy(), len(events) - 1
    env = ContainmentEnv(episodes)
    for step in range(len(events)):
        for action in Action:
            observation, info = env.reset(seed=0)
            for _ in range(step):
                observation, *_, info = env.step(np.int64(WATCH))
            np.testing.assert_allclose(observation, states[step], atol=1e-6)
            assert info["action_mask"][action] == np.isfinite(rewards[step, action])
            if not info["action_mask"][action]:
                continue
            following, got, terminated, truncated, _ = env.step(np.int64(action))
            assert got == pytest.approx(rewards[step, action], abs=1e-9)
            assert terminated == terminal[step, action]
            assert terminated == (action in TERMINAL or (step == last and events[-1].episode_end))
            assert truncated == (step == last and not terminated)
            if action == WATCH and step < last:
                np.testing.assert_allclose(following, states[step + 1], atol=1e-6)


@pytest.mark.property(18)
def test_isolation_cuts_the_network_off_from_the_next_window_on() -> None:
    everything = dict.fromkeys(strategies.COUNTS, 100.0)
    events = [Event(episode_id="e", step=n, is_malicious=True, **everything) for n in range(3)]
    _, episodes = recorded(events)
    replay = LockstepReplay(episodes)
    assert (replay.windows[0, NETWORK] == 100).all()
    rewards, _, _ = replay.step(np.array([ISOLATE]))
    damage = episodes.next_damage[0]
    assert rewards[0] == pytest.approx(-damage * (1 - 0.4) - 0.02)
    assert (replay.windows[0, NETWORK] == 0).all()
    assert replay.windows[0, 0] == 100
    assert replay.level.tolist() == [1]
    assert replay.features[0, 29] == pytest.approx(1 / 3)


@settings(max_examples=100, deadline=None)
@given(
    measured=st.lists(st.none() | st.floats(0, 1e6), min_size=14, max_size=14),
    was=st.integers(0, 3),
    level=st.integers(0, 3),
)
def test_isolating_never_lowers_a_level_nor_measures_what_was_not(
    measured: list[float | None], was: int, level: int
) -> None:
    window = np.array([[np.nan if x is None else x for x in measured]])
    window[0, 13] = was
    changed = isolated(window, np.array([level]))
    assert changed[0, 13] == max(was, level)
    np.testing.assert_array_equal(np.isnan(changed), np.isnan(window))
    rest = [c for c in range(13) if c not in NETWORK]
    np.testing.assert_array_equal(changed[:, rest], window[:, rest])


@pytest.mark.property(17)
@settings(max_examples=60, deadline=None)
@given(events=strategies.episodes(max_windows=8), level=st.integers(0, 3))
def test_containing_earlier_never_costs_and_interrupting_never_pays(
    events: list[Event], level: int
) -> None:
    """Quarantine at each window; by simulation, isolation raised `level` times before."""
    _, episodes = recorded(events)
    returns = []
    for stop in range(len(events) + 1):
        replay, total = LockstepReplay(episodes), 0.0
        while len(replay.active):
            raising = replay.time < level and replay.level[0] < 3
            action = ISOLATE if raising else WATCH
            if replay.time == stop:
                action = Action.QUARANTINE_FILE
            discount = 0.99**replay.time
            total += discount * replay.step(np.array([action]))[0][0]
        returns.append(total)
    if events[0].is_malicious:
        assert (np.diff(returns) <= 1e-12).all()
    else:
        assert (np.array(returns[:-1]) <= returns[-1] + 1e-12).all()


def test_a_masked_action_is_refused_in_lockstep_and_only_watches_in_the_environment() -> None:
    _, episodes = recorded(
        [Event(episode_id="e", step=n, isolation_level=3, is_malicious=True) for n in range(2)]
    )
    with pytest.raises(ValueError, match="masked"):
        LockstepReplay(episodes).step(np.array([ISOLATE]))
    env = ContainmentEnv(episodes)
    _, info = env.reset(seed=0)
    assert info["action_mask"].tolist() == [True, False, True, True, True]
    _, reward, *_ = env.step(np.int64(ISOLATE))
    env.reset(seed=0)
    assert env.step(np.int64(WATCH))[1] == reward


def test_gymnasiums_own_checker_finds_nothing(episodes: Episodes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(ContainmentEnv(episodes), skip_render_check=True)


def test_stable_baselines3_trains_on_it_unchanged(episodes: Episodes) -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason="a peer of the extra `bench`")
    agent = sb3.DQN("MlpPolicy", ContainmentEnv(episodes), learning_starts=50, seed=0, device="cpu")
    agent.learn(total_timesteps=300)
    observation, _ = ContainmentEnv(episodes).reset(seed=0)
    action, _ = agent.predict(observation, deterministic=True)
    assert int(action) in list(Action)


def test_a_reset_draws_by_its_seed_or_takes_the_named_episode(episodes: Episodes) -> None:
    env = ContainmentEnv(episodes)
    first, _ = env.reset(seed=5)
    again, _ = env.reset(seed=5)
    np.testing.assert_array_equal(first, again)
    named, _ = env.reset(options={"episode": 3})
    row = episodes.offsets[3]
    expected, _ = features.step(np, episodes.windows[row : row + 1], episodes.carry[3:4])
    np.testing.assert_allclose(named, expected[0], atol=1e-6)
    with pytest.raises(ValueError, match="no labelled episode"):
        ContainmentEnv(episodes.select(np.empty(0, dtype=np.int64)))


@pytest.mark.property(19)
def test_unlabelled_episodes_are_counted_and_left_out() -> None:
    frame = transforms.experiences_of(
        [[Event(episode_id="a", step=0), Event(episode_id="b", step=0, is_malicious=False)]]
    )
    episodes = from_experiences(frame)
    assert (len(episodes), episodes.unlabelled) == (1, 1)
    assert episodes.names == [("default", "b")]
    empty = from_experiences(frame.clear())
    assert (len(empty), empty.unlabelled) == (0, 0)


def test_a_selection_of_episodes_holds_their_windows(episodes: Episodes) -> None:
    chosen = episodes.select(np.array([5, 2]))
    for place, e in enumerate((5, 2)):
        low, high = episodes.offsets[e], episodes.offsets[e + 1]
        a, b = chosen.offsets[place], chosen.offsets[place + 1]
        np.testing.assert_array_equal(chosen.windows[a:b], episodes.windows[low:high])
        np.testing.assert_array_equal(chosen.next_damage[a:b], episodes.next_damage[low:high])
    assert chosen.names == [episodes.names[5], episodes.names[2]]
