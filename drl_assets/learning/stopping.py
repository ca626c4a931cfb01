"""Stopping rules on trajectories: what stopping at each row is worth, and the best thresholds.

Trajectory rows come in (`trajectories.ROW_COLUMNS`, or an oracle's): they hold the reward of every
action at every step, so the return of "watch until the score exceeds a margin, then act" is exact
and needs no cost table. As the margin rises, a trajectory's return changes only where the running
maximum of its score does; so one sort gives the returns at all margins.
"""

from typing import NamedTuple

import numpy as np

from drl_assets.learning.episodes import Bools, Floats, Ints
from drl_assets.learning.replay import Columns
from drl_core.actions import CONTAINING, Action

REVIEW_LEVELS = 64
"""How many review thresholds are tried in a search for two."""


class Rule(NamedTuple):
    """Stop where a score exceeds `threshold`: by `act` where it exceeds `act_threshold` too, else
    by review. Without a review band the two are equal."""

    act: int
    threshold: float
    act_threshold: float
    utility: float
    """Mean discounted return of the rule on the scores that it was chosen by."""


class Sweep(NamedTuple):
    """A one-threshold rule at every margin that makes a difference; arrays [K], margins rise."""

    margin: Floats
    utility: Floats
    contained: Floats
    """Share of malicious trajectories that are stopped; NaN where there are none."""
    interrupted: Floats
    """Share of benign trajectories that are stopped; NaN where there are none."""


class _Steps(NamedTuple):
    """What changes as the margin rises past each level; arrays [R], levels rise."""

    level: Floats
    change: Floats
    """Of the sum of returns, once the margin has passed the level."""
    freed: Ints
    """The trajectory that is no longer stopped at all, -1 where it is stopped later."""


class Stopping:
    """Trajectories back to back, and what stopping at each row is worth.

    Attributes:
        starts: [E] first row of each trajectory.
        trajectory: [M] each row's trajectory.
        malicious: [E].
        worth: [M, 5] discounted return of a trajectory that is watched before the row, where the
            action is taken and nothing follows; -inf where the action is masked.
        watched: [E] discounted return of only watching.
    """

    def __init__(self, rows: Columns, gamma: float) -> None:
        first = np.append(True, rows["last"][:-1])[: len(rows["last"])]
        self.starts: Ints = np.flatnonzero(first)
        self.trajectory: Ints = np.cumsum(first) - 1
        self.malicious: Bools = rows["malicious"][self.starts]
        discount = gamma ** (np.arange(len(first)) - self.starts[self.trajectory])
        rewards = rows["rewards"].astype(np.float64)
        total = np.append(0.0, np.cumsum(discount * rewards[:, Action.CONTINUE_MONITORING]))
        before = total[:-1] - total[self.starts][self.trajectory]
        self.worth: Floats = before[:, None] + discount[:, None] * rewards
        self.watched: Floats = np.diff(total[np.append(self.starts, len(first))])

    def best(self, score: Floats, *, review: bool = False) -> Rule:
        """The rule of highest mean return on a score [M], with or without a review band."""
        search = self._best_with_review if review else self._best
        return max((search(score, act) for act in CONTAINING), key=lambda rule: rule.utility)

    def sweep(self, score: Floats, act: Ints) -> Sweep:
        """Stopping with `act` [M] where the score [M] exceeds a margin, at every margin."""
        worth = self.worth[np.arange(len(score)), act]
        steps = self._steps(score, worth)
        kept, margin = _margins(steps.level)
        utility = worth[self.starts].sum() + np.append(0.0, np.cumsum(steps.change))
        shares = []
        for of in (self.malicious, ~self.malicious):
            freed = np.append(0, np.cumsum((steps.freed >= 0) & of[steps.freed]))
            shares.append(1 - freed / of.sum() if of.any() else np.full(len(freed), np.nan))
        return Sweep(margin, utility[kept] / len(of), shares[0][kept], shares[1][kept])

    def _best(self, score: Floats, act: Action) -> Rule:
        worth = self.worth[:, act]
        steps = self._steps(score, worth)
        kept, margin = _margins(steps.level)
        total = (worth[self.starts].sum() + np.append(0.0, np.cumsum(steps.change)))[kept]
        at = int(total.argmax())
        threshold = float(margin[at])
        return Rule(int(act), threshold, threshold, float(total[at]) / len(self.starts))

    def _best_with_review(self, score: Floats, act: Action) -> Rule:
        record = self._records(score)
        trajectory = self.trajectory[record]
        begins = np.flatnonzero(np.append(True, trajectory[1:] > trajectory[:-1]))
        counts = np.diff(np.append(begins, len(record)))
        acting, reviewing = self.worth[:, act], self.worth[:, Action.REQUEST_HUMAN_REVIEW]
        levels = np.unique(np.quantile(score[record], np.linspace(0, 1, REVIEW_LEVELS)))
        tried = [self._best(score, a).threshold for a in (act, Action.REQUEST_HUMAN_REVIEW)]
        found = []
        for threshold in (*tried, *_margins(levels)[1]):
            below = np.add.reduceat(score[record] <= threshold, begins, dtype=np.int64)
            stopped = below < counts
            row = record[(begins + below)[stopped]]
            order = np.argsort(-score[row], kind="stable")
            kept, margin = _margins(score[row][order][::-1])
            # acting on the n highest scores instead of reviewing them, for every n
            gain = np.append(0.0, np.cumsum((acting - reviewing)[row][order]))[::-1][kept]
            at = int(gain.argmax())
            total = self.watched[~stopped].sum() + reviewing[row].sum() + gain[at]
            found.append((float(total), float(threshold), max(float(margin[at]), float(threshold))))
        total, threshold, act_threshold = max(found)
        return Rule(int(act), threshold, act_threshold, total / len(self.starts))

    def _steps(self, score: Floats, worth: Floats) -> _Steps:
        record = self._records(score)
        trajectory = self.trajectory[record]
        final = np.append(trajectory[1:] > trajectory[:-1], True)
        later = np.where(final, self.watched[trajectory], worth[np.append(record[1:], 0)])
        order = np.argsort(score[record], kind="stable")
        return _Steps(
            score[record][order],
            (later - worth[record])[order],
            np.where(final, trajectory, -1)[order],
        )

    def _records(self, score: Floats) -> Ints:
        """Rows whose score exceeds all before it in the trajectory, [R]."""
        values, rank = np.unique(score, return_inverse=True)
        running = np.maximum.accumulate(rank + self.trajectory * len(values))
        return np.flatnonzero(np.append(True, running[1:] > running[:-1]))


def _margins(level: Floats) -> tuple[Ints, Floats]:
    """Margins between sorted levels, below all and above all; and how many levels each passes."""
    if not len(level):
        return np.zeros(1, dtype=np.int64), np.full(1, np.inf)
    passed = np.append(0, np.flatnonzero(np.append(level[1:] > level[:-1], True)) + 1)
    inner = passed[1:-1]
    between = (level[inner - 1] + level[inner]) / 2  # on a score itself, rounding would decide
    return passed, np.concatenate(([level[0] - 1.0], between, [np.inf]))
