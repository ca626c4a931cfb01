"""Bootstrap confidence intervals, clustered by session, and the exact interval of a share.

Episodes of one session resemble each other, so sessions are what is drawn (a clustered bootstrap).
Per-episode numerators and denominators come in, 95 % intervals come out, None where fewer than two
sessions have such episodes.
"""

import numpy as np

from drl_assets.learning.data.episodes import Bools, Floats, Ints

DRAWS = 1000

Interval = list[float] | None


class SessionBootstrap:
    """Clustered bootstrap: the sessions of E episodes, drawn with replacement DRAWS times.

    Attributes:
        names: [S] the sessions.
        member: [E] each episode's session.
        counts: [DRAWS, S] how often each session was drawn.
    """

    def __init__(self, session: list[str], seed: int = 0) -> None:
        names, member = np.unique(np.asarray(session, dtype=np.str_), return_inverse=True)
        self.names: list[str] = names.tolist()
        self.member: Ints = member
        size = len(names)
        draw = np.random.default_rng(seed).integers(max(size, 1), size=(DRAWS, size))
        flat = (draw + np.arange(DRAWS)[:, None] * size).ravel()
        self.counts: Ints = np.bincount(flat, minlength=DRAWS * size).reshape(DRAWS, size)

    def having(self, of: Bools) -> int:
        """Sessions with at least one such episode; of is [E]."""
        return len(np.unique(self.member[of]))

    def ratio(self, numerator: Floats, denominator: Floats) -> Interval:
        """Interval of sum(numerator) / sum(denominator), both [E]."""
        if self.having(denominator > 0) < 2:
            return None
        above = self.counts @ self._sums(numerator)
        below = self.counts @ self._sums(denominator)
        return quantiles(above[below > 0] / below[below > 0])

    def containment_at(self, score: Floats, malicious: Bools, budget: float) -> Interval:
        """Interval of `evaluate.containment_at`, the margin found anew in every draw."""
        if min(self.having(malicious), self.having(~malicious)) < 2:
            return None
        benign = np.flatnonzero(~malicious)[np.argsort(-score[~malicious], kind="stable")]
        bad, found = np.flatnonzero(malicious), []
        for counts in self.counts:
            drawn, weight = np.cumsum(counts[self.member[benign]]), counts[self.member[bad]]
            if drawn[-1] and weight.sum():
                at = np.searchsorted(drawn, int(budget * drawn[-1]), side="right")
                found.append(weight @ (score[bad] > score[benign[at]]) / weight.sum())
        return quantiles(np.asarray(found))

    def _sums(self, values: Floats) -> Floats:
        return np.bincount(self.member, weights=values, minlength=len(self.names)).astype(
            np.float64
        )


def session_bootstrap(values: Floats, session: list[str], seed: int = 0) -> Interval:
    """95 % interval of a mean over episodes, whole sessions resampled; None with fewer than two."""
    return SessionBootstrap(session, seed).ratio(values, np.ones(len(values)))


def clopper_pearson(hits: int, of: int) -> Interval:
    """Exact 95 % interval of a share; None of nothing."""
    from scipy.stats import beta

    if not of:
        return None
    return [
        float(beta.ppf(0.025, hits, of - hits + 1)) if hits else 0.0,
        float(beta.ppf(0.975, hits + 1, of - hits)) if hits < of else 1.0,
    ]


def quantiles(values: Floats) -> Interval:
    """The 2.5 % and 97.5 % quantiles; None of nothing."""
    return [float(x) for x in np.quantile(values, [0.025, 0.975])] if len(values) else None
