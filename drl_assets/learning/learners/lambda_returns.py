"""TD(lambda) targets on recorded trajectories, for all five actions at once.

The target network's predictions for each row come in; the lambda-returns of every action under the
greedy policy come out, as targets of a regression, by one pass backwards through the lattice of
windows x isolation levels.
"""

import numpy as np
import torch
from torch import Tensor

from drl_assets.learning.data.episodes import Floats
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.learners.networks import posterior_q
from drl_core.policy.actions import Action, allowed


def lambda_targets(
    heads: Floats, calibration: Tensor, rows: Columns, gamma: float, trace: float
) -> Floats:
    """TD(lambda) targets of all five actions at every row and level.

    y(terminating a) = r_a;  y(continue) = r + gamma * U(next window);  y(isolate) = r + gamma *
    U(next window, one level above that in force), with U = (1 - lambda) max Q + lambda * y(greedy
    action). A truncated record is bootstrapped with its last state's own value, a terminated one
    with 0.

    Args:
        heads: float64 [N, L, 11], the target network's out-of-fold predictions.
        calibration: (slope, offset) of the logit, [2], on the CPU.
        rows: N rows of `trajectories.ROW_COLUMNS`, L levels.
        gamma: discount per window.
        trace: lambda.

    Returns:
        float64 [N, L, 5]; -inf where an action is masked.
    """
    q = masked_q(heads, calibration, rows)
    best, greedy = q.max(axis=2), q.argmax(axis=2)
    up = np.minimum(rows["level"].astype(np.int64) + 1, best.shape[1] - 1)
    y = rows["rewards"].astype(np.float64)
    last = rows["last"]
    beyond = np.where(rows["terminated"][:, None], 0.0, best)
    value = np.where(last[:, None], beyond, 0.0)  # of what comes after each row, at each level
    ends = np.flatnonzero(last)
    lengths = np.diff(np.append(-1, ends))
    for distance in range(int(lengths.max(initial=0))):  # backwards, all trajectories together
        running = lengths > distance
        row = ends[running] - distance
        y[row, :, Action.CONTINUE_MONITORING] += gamma * value[row]
        isolated = np.take_along_axis(value[row], up[row], axis=1)
        y[row, :, Action.INCREASE_ISOLATION] += gamma * isolated
        followed = np.take_along_axis(y[row], greedy[row][..., None], axis=2)[..., 0]
        worth = (1 - trace) * best[row] + trace * followed
        inner = lengths[running] > distance + 1
        value[row[inner] - 1] = worth[inner]
    return y


def masked_q(heads: Floats, calibration: Tensor, rows: Columns) -> Floats:
    """Q-values [N, L, 5] of outputs [N, L, 11]; -inf where an action is masked."""
    q: Floats = posterior_q(torch.from_numpy(heads), *calibration.double()).numpy()
    mask = allowed(rows["level"].reshape(-1)).reshape(q.shape)
    return np.where(mask, q, -np.inf)
