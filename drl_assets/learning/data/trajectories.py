"""Full-information trajectories: recorded episodes with the rewards of all actions in hindsight.

One row a recorded window. It holds the state and the rewards of all five actions in hindsight, once
for each isolation level that could have been in force: what is recorded does not depend on us but
for what isolation cuts off, so an episode is a lattice of windows x levels, on which monitoring
goes one window on and isolating one window on and one level up. Rows of a trajectory are
consecutive, `last` ends it.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from drl_assets.learning.data.episodes import LEVEL, Episodes, Floats, Ints, isolated
from drl_assets.learning.data.replay_buffer import Columns
from drl_core.policy import features, reward
from drl_core.policy.actions import ACTION_COUNT, MAX_ISOLATION_LEVEL
from drl_core.policy.reward import CostTable

LEVELS = MAX_ISOLATION_LEVEL + 1

ROW_COLUMNS: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
    "state": ((LEVELS, features.FEATURE_COUNT), np.float32),
    "rewards": ((LEVELS, ACTION_COUNT), np.float32),
    "level": ((LEVELS,), np.int8),
    "last": ((), np.bool_),
    "terminated": ((), np.bool_),
    "malicious": ((), np.bool_),
    "session": ((), np.int64),
    "attack_type": ((), np.int64),
    "fold": ((), np.int8),
    "priority": ((), np.float32),
}
"""`level` is the level in force (never below the recording's own); `rewards` hold -inf where an
action is masked at it; `terminated` marks a last row after which the artefact had ended by itself;
`session` and `attack_type` are `name_hash`es (0: benign); `fold` is the group of sessions that a
member of the ensemble never sees (-1: none); `priority` is one random number per trajectory, by
which the replay keeps a uniform sample of what it has seen. Axis 1 of the first three is the level;
an oracle's trajectories have one level only, and isolating stays on it."""


def name_hash(name: str) -> int:
    """A name as a positive 63-bit integer, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def rows_of(
    episodes: Episodes, rng: np.random.Generator, costs: CostTable = reward.DEFAULT_COSTS
) -> Columns:
    """Rows of every episode, back to back, at all isolation levels.

    At a level above the recording's own, the past is drawn: isolation has been in force since a
    random step of the episode, or begins with this window.

    Args:
        episodes: labelled episodes.
        rng: draws the steps since when isolation has been in force, and the priorities.
        costs: the cost table.

    Returns:
        Columns of ROW_COLUMNS, N rows; `fold` is -1 (see `cross_fitting.assign_folds`).
    """
    count = len(episodes.windows)
    rows: Columns = {
        name: np.zeros((count, *shape), dtype) for name, (shape, dtype) in ROW_COLUMNS.items()
    }
    malicious = episodes.per_row(episodes.malicious)
    for level in range(LEVELS):
        windows = isolated(episodes.windows, np.full(count, level))
        in_force = windows[:, LEVEL].astype(np.int64)
        past = windows if not level else _isolated_since(episodes, windows, rng)
        rows["state"][:, level] = features.step(np, windows, _carry_before(past, episodes))[0]
        rows["level"][:, level] = in_force
        rows["rewards"][:, level] = reward.hindsight(
            episodes.next_damage, malicious, in_force, costs
        )
    rows["last"][episodes.offsets[1:] - 1] = True
    rows["terminated"] = rows["last"] & episodes.per_row(episodes.ended)
    rows["malicious"] = malicious
    rows["session"] = episodes.per_row(_hashes(episodes.session))
    types = np.where(episodes.malicious, _hashes(episodes.attack_type), 0)
    rows["attack_type"] = episodes.per_row(types)
    rows["fold"] -= 1
    rows["priority"] = episodes.per_row(rng.random(len(episodes), dtype=np.float32))
    return rows


def as_recorded(rows: Columns) -> Columns:
    """The rows at the recording's own isolation level alone: `state` [N, 30], `rewards` [N, 5]."""
    lattice = ("state", "rewards", "level")
    return {name: column[:, 0] if name in lattice else column for name, column in rows.items()}


def starts(last: npt.NDArray[np.bool_]) -> Ints:
    """The first row of each trajectory, [E]; rows after the last `last` are one of their own."""
    return np.flatnonzero(np.append(True, last[:-1])[: len(last)])


def _isolated_since(episodes: Episodes, windows: Floats, rng: np.random.Generator) -> Floats:
    """The recorded windows up to a random step of each episode, the isolated ones from it on."""
    since = np.ceil(rng.random(len(episodes)) * 1.25 * episodes.lengths)
    position = np.arange(len(windows)) - episodes.per_row(episodes.offsets[:-1])
    return np.where((position >= episodes.per_row(since))[:, None], windows, episodes.windows)


def _carry_before(windows: Floats, episodes: Episodes) -> Floats:
    """The carry before each row, [N, 14]: what `features.fold` keeps to itself."""
    now, _ = features.observe(np, windows)
    add = np.column_stack((now, np.ones(len(now)), windows[:, features.SIGNAL_COUNT]))
    sums = np.vstack((np.zeros(features.CARRY_WIDTH), np.cumsum(add, axis=0)))
    begin = sums[episodes.offsets[:-1]]
    result: Floats = sums[:-1] + np.repeat(episodes.carry - begin, episodes.lengths, axis=0)
    return result


def _hashes(names: list[str]) -> Ints:
    known = {name: name_hash(name) for name in set(names)}
    return np.array([known[name] for name in names], dtype=np.int64)
