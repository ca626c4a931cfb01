"""Cross-fitting: which fold of sessions each member of the ensemble leaves out.

A session belongs to one fold for good, so a member that goes on learning from the replay has still
never seen its fold, and its out-of-fold prediction is honest for a session yet to come.
"""

import numpy as np
import numpy.typing as npt

from drl_assets.learning.data.replay_buffer import Columns


def assign_folds(rows: Columns, members: int) -> tuple[npt.NDArray[np.int8], bool]:
    """The cross-validation fold of every row.

    A session that has one (`fold` is not -1) keeps it; each other one, in the order of its hash,
    goes to the fold that has the fewest sessions of its class (malicious where any of its
    trajectories is). Where the replay has kept a class in one fold alone, all are assigned anew.

    Args:
        rows: the replay: `session`, `malicious`, `fold`.
        members: number of folds.

    Returns:
        int8 [N], and whether sessions are left out at all: with fewer than two sessions of a class
        nothing could be validated, and every fold is -1.
    """
    _, at, inverse = np.unique(rows["session"], return_index=True, return_inverse=True)
    kind = (np.bincount(inverse, weights=rows["malicious"]) > 0).astype(np.int64)
    if members < 2 or np.bincount(kind, minlength=2).min() < 2:
        return np.full(len(inverse), -1, dtype=np.int8), False
    fold = rows["fold"][at].astype(np.int64)
    if any(len(np.unique(fold[kind == one])) < 2 and fold[kind == one][0] >= 0 for one in (0, 1)):
        fold[:] = -1  # what is left of a class is in one fold: its member would learn without it
    size = np.zeros((2, members), dtype=np.int64)
    np.add.at(size, (kind[fold >= 0], fold[fold >= 0]), 1)
    for session in np.flatnonzero(fold < 0):
        fold[session] = np.lexsort((size.sum(axis=0), size[kind[session]]))[0]
        size[kind[session], fold[session]] += 1
    return fold[inverse].astype(np.int8), True
