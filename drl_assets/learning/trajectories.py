"""Recorded episodes as trajectories: what the learners and the baselines are fitted on.

One row a step holds the state, the rewards of all five actions in hindsight and where isolating
would have led. Rows of a trajectory are consecutive, `last` ends it. A trajectory is an episode as
recorded, or a copy of it on which isolation was raised at random times, so that the states behind
isolation are learned too.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from drl_assets.learning.episodes import Bools, Episodes, Floats, Ints, isolated
from drl_assets.learning.replay import Columns
from drl_core import features, reward
from drl_core.actions import ACTION_COUNT, MAX_ISOLATION_LEVEL
from drl_core.reward import CostTable

ROW_COLUMNS: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
    "state": ((features.FEATURE_COUNT,), np.float32),
    "isolated_state": ((features.FEATURE_COUNT,), np.float32),
    "rewards": ((ACTION_COUNT,), np.float32),
    "level": ((), np.int8),
    "last": ((), np.bool_),
    "terminated": ((), np.bool_),
    "malicious": ((), np.bool_),
    "recorded": ((), np.bool_),
    "session": ((), np.int64),
    "attack_type": ((), np.int64),
}
"""`isolated_state` is the next state had isolation been raised here, zeros on last rows; `rewards`
hold -inf where an action is masked at `level`; `terminated` marks a last row after which the
artefact had ended by itself; `recorded` is False on copies with raised isolation; `session` and
`attack_type` are `name_hash`es (0: benign)."""


def name_hash(name: str) -> int:
    """A name as a positive 63-bit integer, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def rows_of(
    episodes: Episodes,
    rng: np.random.Generator,
    costs: CostTable = reward.DEFAULT_COSTS,
    isolation_trajectories: int = 1,
) -> Columns:
    """Rows of every episode as recorded, and of copies on which isolation was raised.

    Args:
        episodes: labelled episodes.
        rng: draws the times of isolation.
        costs: the cost table.
        isolation_trajectories: copies per episode.

    Returns:
        Columns of ROW_COLUMNS, all trajectories back to back.
    """
    unattended = np.zeros(len(episodes.windows), dtype=np.int64)
    parts = [_trajectories(episodes, unattended, costs, recorded=True)]
    for _ in range(isolation_trajectories):
        parts.append(
            _trajectories(episodes, _random_schedule(episodes, rng), costs, recorded=False)
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in ROW_COLUMNS}


def _random_schedule(episodes: Episodes, rng: np.random.Generator) -> Ints:
    """A level for every row: raised up to three times at random steps of each episode, [N]."""
    lengths = np.repeat(episodes.lengths, episodes.lengths)
    position = np.arange(len(lengths)) - np.repeat(episodes.offsets[:-1], episodes.lengths)
    times = np.sort(rng.random((len(episodes), MAX_ISOLATION_LEVEL)) ** 2 * 1.5, axis=1)
    times[:, 0] = np.minimum(times[:, 0], 0.5)
    share = (position + 1) / lengths
    level: Ints = (share[:, None] > np.repeat(times, episodes.lengths, axis=0)).sum(axis=1)
    return level


def _trajectories(episodes: Episodes, level: Ints, costs: CostTable, *, recorded: bool) -> Columns:
    windows = isolated(episodes.windows, level)
    states, _ = features.fold(windows, episodes.first, episodes.carry)
    in_force = windows[:, -1].astype(np.int64)
    last = np.zeros(len(windows), dtype=np.bool_)
    last[episodes.offsets[1:] - 1] = True
    rewards = reward.hindsight(
        episodes.next_damage, episodes.per_row(episodes.malicious).astype(bool), in_force, costs
    )
    terminated = last & episodes.per_row(episodes.ended).astype(bool)
    return {
        "state": states,
        "isolated_state": _after_isolating(episodes, windows, in_force, last),
        "rewards": rewards.astype(np.float32),
        "level": in_force.astype(np.int8),
        "last": last,
        "terminated": terminated,
        "malicious": episodes.per_row(episodes.malicious),
        "recorded": np.full(len(windows), recorded),
        "session": episodes.per_row(_hashes(episodes.session)),
        "attack_type": episodes.per_row(
            np.where(episodes.malicious, _hashes(episodes.attack_type), 0)
        ),
    }


def _hashes(names: list[str]) -> Ints:
    known = {name: name_hash(name) for name in set(names)}
    return np.array([known[name] for name in names], dtype=np.int64)


def _after_isolating(
    episodes: Episodes, windows: Floats, level: Ints, last: Bools
) -> npt.NDArray[np.float32]:
    """The next state of each row had isolation been raised there, [N, 30]; zeros on last rows."""
    now, _ = features.observe(np, windows)
    carry = _running_carry(now, windows, episodes)
    go_on = np.flatnonzero(~last)
    raised = np.minimum(level[go_on] + 1, MAX_ISOLATION_LEVEL)
    following = isolated(episodes.windows[go_on + 1], raised)
    after, _ = features.step(np, following, carry[go_on])
    result = np.zeros((len(windows), features.FEATURE_COUNT), dtype=np.float32)
    result[go_on] = after
    return result


def _running_carry(now: Floats, windows: Floats, episodes: Episodes) -> Floats:
    """The carry after each row, [N, 14]: what `features.fold` keeps to itself."""
    add = np.column_stack((now, np.ones(len(now)), windows[:, features.SIGNAL_COUNT]))
    sums = np.cumsum(add, axis=0)
    before = np.vstack((np.zeros(features.CARRY_WIDTH), sums))[episodes.offsets[:-1]]
    return sums + np.repeat(episodes.carry - before, episodes.lengths, axis=0)
