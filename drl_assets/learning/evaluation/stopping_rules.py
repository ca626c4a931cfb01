"""Stopping rules on trajectories: what stopping at each row is worth, and the best thresholds.

Trajectory rows come in (`trajectories.ROW_COLUMNS`, or an oracle's): they hold the reward of every
action at every step, so the return of "monitor until the score exceeds a margin, then act" is exact
and needs no cost table. As the margin rises, a trajectory's return changes only where the running
maximum of its score does; so one sort gives the returns at all margins.
"""

from typing import NamedTuple

import numpy as np

from drl_assets.learning.data.episodes import Bools, Floats, Ints
from drl_assets.learning.data.replay_buffer import Columns
from drl_core.policy.actions import CONTAINING, Action

BAND_LEVELS = 48
"""How many lower thresholds are tried in a search for two."""


class Rule(NamedTuple):
    """`act` where a score exceeds `act_threshold`, else `band` where it exceeds `threshold`.

    The two thresholds are equal where there is no band. A review ends the episode; isolation goes
    on, and the rule goes on with it.
    """

    act: int
    band: int
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


class _Path(NamedTuple):
    """Where the running maximum of a score rises, in order of the trajectories; arrays [R]."""

    record: Ints
    """The rows."""
    final: Bools
    """The last of its trajectory."""
    order: Ints
    """Sorts them by score."""
    level: Floats
    """Their scores, sorted."""
    peak: Floats
    """[M], the running maximum at every row."""


class Stopping:
    """Trajectories back to back, and what stopping at each row is worth.

    Attributes:
        starts: [E] first row of each trajectory.
        trajectory: [M] each row's trajectory.
        malicious: [E].
        rewards: [M, 5] of each action; -inf where masked.
        isolation_stays: isolation, once raised, is in force to the end (False in the oracles).
    """

    def __init__(self, rows: Columns, gamma: float, *, isolation_stays: bool = True) -> None:
        first = np.append(True, rows["last"][:-1])[: len(rows["last"])]
        self.starts: Ints = np.flatnonzero(first)
        self.trajectory: Ints = np.cumsum(first) - 1
        self.malicious: Bools = rows["malicious"][self.starts]
        self.rewards: Floats = rows["rewards"].astype(np.float64)
        self.isolation_stays = isolation_stays
        position = np.arange(len(first)) - self.starts[self.trajectory]
        self._discount: Floats = np.float64(gamma) ** position

    def best(self, score: Floats, *, band: bool = False) -> Rule:
        """The rule of highest mean return on a score [M], with or without a band below the act.

        The band is the better of review and isolation; isolation is taken not to change the score.
        """
        path = self._path(score)
        rules = [self._best(path, act) for act in CONTAINING]
        if band:
            rules += [
                search(path, score, act)
                for search in (self._best_with_review, self._best_with_isolation)
                for act in CONTAINING
            ]
        return max(rules, key=lambda rule: rule.utility)

    def sweep(self, score: Floats, act: Ints) -> Sweep:
        """Stopping with `act` [M] where the score [M] exceeds a margin, at every margin."""
        path = self._path(score)
        before, monitored = self._monitor(self.rewards[:, Action.CONTINUE_MONITORING])
        worth = before + self._discount * self.rewards[np.arange(len(score)), act]
        kept, margin = _margins(path.level)
        utility = self._totals(path, worth, monitored)[kept] / len(self.starts)
        freed = np.where(path.final, self.trajectory[path.record], -1)[path.order]
        shares = []
        for of in (self.malicious, ~self.malicious):
            gone = np.append(0, np.cumsum((freed >= 0) & of[freed]))[kept]
            shares.append(1 - gone / of.sum() if of.any() else np.full(len(gone), np.nan))
        return Sweep(margin, utility, shares[0], shares[1])

    def _monitor(self, reward: Floats) -> tuple[Floats, Floats]:
        """Return before each row, [M], and of whole trajectories, [E], where nothing is stopped."""
        total = np.append(0.0, np.cumsum(self._discount * reward))
        before = total[:-1] - total[self.starts][self.trajectory]
        return before, np.diff(total[np.append(self.starts, len(reward))])

    def _totals(self, path: _Path, worth: Floats, monitored: Floats) -> Floats:
        """Sum of returns where no level, the lowest, the two lowest, .. is exceeded, [R + 1]."""
        later = np.where(
            path.final,
            monitored[self.trajectory[path.record]],
            worth[np.append(path.record[1:], 0)],
        )
        change = (later - worth[path.record])[path.order]
        result: Floats = worth[self.starts].sum() + np.append(0.0, np.cumsum(change))
        return result

    def _best(self, path: _Path, act: Action, running: Floats | None = None) -> Rule:
        """The best threshold where rows that are not stopped pay `running` [M]."""
        running = self.rewards[:, Action.CONTINUE_MONITORING] if running is None else running
        before, monitored = self._monitor(running)
        worth = before + self._discount * self.rewards[:, act]
        kept, margin = _margins(path.level)
        total = self._totals(path, worth, monitored)[kept]
        at = int(total.argmax())
        threshold, utility = float(margin[at]), float(total[at]) / len(self.starts)
        return Rule(int(act), int(act), threshold, threshold, utility)

    def _best_with_isolation(self, path: _Path, score: Floats, act: Action) -> Rule:
        monitoring = self.rewards[:, Action.CONTINUE_MONITORING]
        isolating = self.rewards[:, Action.INCREASE_ISOLATION]
        isolating = np.where(np.isfinite(isolating), isolating, monitoring)
        seen = path.peak if self.isolation_stays else score
        found = []
        for threshold in _margins(_quantiles(seen))[1]:
            rule = self._best(path, act, np.where(seen > threshold, isolating, monitoring))
            found.append(
                rule._replace(band=int(Action.INCREASE_ISOLATION), threshold=float(threshold))
            )
        return max(found, key=lambda rule: rule.utility)

    def _best_with_review(self, path: _Path, score: Floats, act: Action) -> Rule:
        record, trajectory = path.record, self.trajectory[path.record]
        begins = np.flatnonzero(np.append(True, trajectory[1:] > trajectory[:-1]))
        counts = np.diff(np.append(begins, len(record)))
        before, monitored = self._monitor(self.rewards[:, Action.CONTINUE_MONITORING])
        acting = before + self._discount * self.rewards[:, act]
        reviewing = before + self._discount * self.rewards[:, Action.REQUEST_HUMAN_REVIEW]
        tried = [self._best(path, a).threshold for a in (act, Action.REQUEST_HUMAN_REVIEW)]
        found = []
        for threshold in (*tried, *_margins(_quantiles(score[record]))[1]):
            below = np.add.reduceat(score[record] <= threshold, begins, dtype=np.int64)
            stopped = below < counts
            row = record[(begins + below)[stopped]]
            order = np.argsort(-score[row], kind="stable")
            kept, margin = _margins(score[row][order][::-1])
            # acting on the n highest scores instead of reviewing them, for every n
            gain = np.append(0.0, np.cumsum((acting - reviewing)[row][order]))[::-1][kept]
            at = int(gain.argmax())
            total = monitored[~stopped].sum() + reviewing[row].sum() + gain[at]
            found.append((float(total), float(threshold), max(float(margin[at]), float(threshold))))
        total, threshold, act_threshold = max(found)
        review, utility = int(Action.REQUEST_HUMAN_REVIEW), total / len(self.starts)
        return Rule(int(act), review, threshold, act_threshold, utility)

    def _path(self, score: Floats) -> _Path:
        values, rank = np.unique(score, return_inverse=True)
        lift = self.trajectory * len(values)
        running = np.maximum.accumulate(rank + lift)
        record = np.flatnonzero(np.append(True, running[1:] > running[:-1]))
        trajectory = self.trajectory[record]
        final = np.append(trajectory[1:] > trajectory[:-1], True)
        order = np.argsort(score[record], kind="stable")
        return _Path(record, final, order, score[record][order], values[running - lift])


def _quantiles(score: Floats) -> Floats:
    result: Floats = np.unique(np.quantile(score, np.linspace(0, 1, BAND_LEVELS)))
    return result


def _margins(level: Floats) -> tuple[Ints, Floats]:
    """Margins between sorted levels, below all and above all; and how many levels each passes."""
    if not len(level):
        return np.zeros(1, dtype=np.int64), np.full(1, np.inf)
    passed = np.append(0, np.flatnonzero(np.append(level[1:] > level[:-1], True)) + 1)
    inner = passed[1:-1]
    between = (level[inner - 1] + level[inner]) / 2  # on a score itself, rounding would decide
    return passed, np.concatenate(([level[0] - 1.0], between, [np.inf]))
