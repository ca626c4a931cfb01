"""Reservoir sampling: which trajectories the replay keeps when it has seen more than it can hold.

Half of the replay is the newest trajectories. The other half is a sample of the older ones: of the
malicious ones as many of each attack type as fit, so that a type that has not come for long is not
forgotten; benign and malicious in the proportion in which they came, since the policy learns how
likely malice is. Within a type it is a uniform sample of all that was ever seen: each trajectory
drew a random number when it came, and the lowest ones stay (bottom-k sampling, the same law as
Vitter's reservoir, 1985, but the sample does not depend on the batches' boundaries).
"""

import numpy as np

from drl_assets.learning.data.episodes import Bools, Ints
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.data.trajectories import starts


def merge(past: Columns | None, new: Columns, capacity: int) -> tuple[Columns, Bools]:
    """The replay after a batch.

    Args:
        past: rows of `trajectories.ROW_COLUMNS`, oldest first; None before the first training.
        new: rows of the new trajectories; `last` ends each.
        capacity: rows at most.

    Returns:
        Whole trajectories in the order of their arrival, and [N] True on the rows that are new. Of
        a single trajectory that is longer than the capacity, the last rows stay.
    """
    parts = [new] if past is None else [past, new]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in new}
    recent = np.arange(len(rows["last"])) >= len(rows["last"]) - len(new["last"])
    rows["last"][len(rows["last"]) - len(new["last"]) - 1] = True  # `past` ended there
    rows["last"][-1] = True
    if len(recent) > capacity:
        kept = _kept(rows, capacity)
        rows, recent = {name: column[kept] for name, column in rows.items()}, recent[kept]
    return rows, recent


def _kept(rows: Columns, capacity: int) -> Ints:
    begin = starts(rows["last"])
    length = np.diff(np.append(begin, len(rows["last"])))
    newest = _fitting(np.arange(len(begin))[::-1], length, capacity // 2)
    if not len(newest) and length[-1] > capacity:
        return np.arange(len(rows["last"]) - capacity, len(rows["last"]))
    chosen = newest if len(newest) else np.array([len(begin) - 1])
    older = np.setdiff1d(np.arange(len(begin)), chosen)
    room = capacity - int(length[chosen].sum())
    malicious = rows["malicious"][begin]
    share = length[older][malicious[older]].sum() / max(length[older].sum(), 1)
    for of, quota in ((True, round(room * share)), (False, room - round(room * share))):
        candidates = older[malicious[older] == of]
        ranked = _by_type(candidates, rows["attack_type"][begin], rows["priority"][begin])
        chosen = np.concatenate((chosen, _fitting(ranked, length, quota)))
    return np.concatenate([np.arange(begin[t], begin[t] + length[t]) for t in np.sort(chosen)])


def _fitting(order: Ints, length: Ints, room: int) -> Ints:
    """Trajectories in an order, as long as they fit."""
    return order[np.cumsum(length[order]) <= room]


def _by_type(candidates: Ints, attack_type: Ints, priority: Ints) -> Ints:
    """The lowest priority of each type first, then the second of each, and so on."""
    order = candidates[np.lexsort((priority[candidates], attack_type[candidates]))]
    _, at, count = np.unique(attack_type[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(at, count)
    return order[np.lexsort((priority[order], rank))]
