"""Platt scaling of the posterior of malice on out-of-fold predictions."""

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from drl_assets.learning.data import trajectories
from drl_assets.learning.data.episodes import Floats
from drl_assets.learning.data.replay_buffer import Columns


def platt_scaling(logit: Floats, rows: Columns) -> Tensor:
    """Slope and offset of the logit (Platt 1999), by likelihood on left-out sessions, [2].

    Every trajectory counts alike, all together as much as there are sessions, since windows and
    trajectories of one session are no independent evidence; a normal prior holds slope and offset
    to (1, 0) where there is little.

    Args:
        logit: [N], of members that have not seen the row's session.
        rows: N rows.
    """
    begin = trajectories.starts(rows["last"])
    lengths = np.diff(np.append(begin, len(logit)))
    weight = np.repeat(1 / lengths, lengths) / len(begin) * len(np.unique(rows["session"]))
    sign = np.where(rows["malicious"], 1.0, -1.0)

    def objective(parameters: Floats) -> tuple[float, Floats]:
        slope, offset = parameters
        margin = sign * (slope * logit + offset)
        slack = -sign * weight / (1 + np.exp(np.clip(margin, -500, 500)))
        loss = (weight * np.logaddexp(0, -margin)).sum()
        prior = 0.5 * (slope - 1) ** 2 + 0.05 * offset**2
        gradient = np.array([(slack * logit).sum() + slope - 1, slack.sum() + 0.1 * offset])
        return float(loss + prior), gradient

    found = minimize(
        objective, np.array([1.0, 0.0]), jac=True, bounds=[(0.02, 10.0), (-20.0, 20.0)]
    )
    return torch.tensor(found.x, dtype=torch.float32)
