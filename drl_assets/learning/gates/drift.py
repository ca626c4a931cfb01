"""Drift (PSI, Kolmogorov-Smirnov, MMD) of new telemetry from what the champion learned from.

States [N, 30] of the champion's replay and [M, 30] of the new rows come in; distances come out. New
telemetry is a reason to train, so distance is a warning; what refuses a challenger is only what no
telemetry can be: values that are not finite or out of range, or one state over and over.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from drl_assets.learning.data.episodes import Floats
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.gates.verdicts import Verdict
from drl_core.policy.features import FEATURE_COUNT, FEATURES
from drl_core.settings import Gates

BINS = 10
MMD_ROWS = 500
"""Rows of each side that the kernel distance is taken from."""

States = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Drift:
    """Distances between two sets of states."""

    psi: dict[str, float]
    """Feature -> population stability index; 0 where alike, above 0.25 it is commonly called a
    shift."""
    ks: dict[str, float]
    """Feature -> greatest distance of the two distribution functions, 0..1."""
    mmd: float
    """Squared maximum mean discrepancy of all features together; about 0 where alike."""


def learned_states(replay: Columns) -> States:
    """States [N, 30] of a checkpoint's replay, at the recording's own isolation level."""
    states: States = replay["state"]
    return states[:, 0] if states.ndim == 3 else states


def states_of(experiences: pl.DataFrame | None) -> States:
    """States [M, 30] of experiences; no rows where there are none."""
    if experiences is None:
        return np.empty((0, FEATURE_COUNT))
    return experiences["state"].to_numpy().reshape(-1, FEATURE_COUNT)


def measure(reference: States, new: States, seed: int = 0) -> Drift:
    """Distances of new states [M, 30] from reference ones [N, 30], neither empty."""
    columns = list(zip(FEATURES, reference.T, new.T, strict=True))
    return Drift(
        psi={name: population_stability(was, now) for name, was, now in columns},
        ks={name: kolmogorov_smirnov(was, now) for name, was, now in columns},
        mmd=mean_discrepancy(reference, new, seed),
    )


def population_stability(reference: States, new: States) -> float:
    """Sum of (q - p) log(q / p) over bins of equal share of the reference; [N] and [M] values.

    Half an observation is added to each bin, so that an empty one is not infinitely far.
    """
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, BINS + 1)[1:-1]))
    shares = []
    for values in (reference, new):
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
        shares.append((counts + 0.5) / (len(values) + 0.5 * len(counts)))
    p, q = shares
    return float(((q - p) * np.log(q / p)).sum())


def kolmogorov_smirnov(reference: States, new: States) -> float:
    """Greatest distance of the two empirical distribution functions; [N] and [M] values."""
    values = np.concatenate((reference, new))
    was = np.searchsorted(np.sort(reference), values, side="right") / len(reference)
    now = np.searchsorted(np.sort(new), values, side="right") / len(new)
    return float(np.abs(was - now).max())


def mean_discrepancy(reference: States, new: States, seed: int = 0) -> float:
    """Unbiased squared MMD (Gretton et al. 2012), Gaussian kernel as wide as the median distance.

    Args:
        reference: [N, D].
        new: [M, D].
        seed: of the MMD_ROWS that are drawn from each.

    Returns:
        0 where a side has fewer than two rows, or all rows are alike.
    """
    rng = np.random.default_rng(seed)
    x, y = (
        rows[rng.permutation(len(rows))[:MMD_ROWS]].astype(np.float64) for rows in (reference, new)
    )
    both = np.concatenate((x, y))
    square = (both**2).sum(axis=1)
    distance = np.maximum(square[:, None] + square - 2 * both @ both.T, 0.0)
    width = float(np.median(distance[np.triu_indices(len(both), 1)])) if len(both) > 1 else 0.0
    if min(len(x), len(y)) < 2 or width == 0:
        return 0.0
    kernel = np.exp(-distance / width)
    n, m = len(x), len(y)

    def within(block: Floats, size: int) -> float:
        return float((block.sum() - np.trace(block)) / (size * (size - 1)))

    across = float(kernel[:n, n:].mean())
    return within(kernel[:n, :n], n) + within(kernel[n:, n:], m) - 2 * across


def impossible(states: States) -> list[str]:
    """What no telemetry can be, as sentences: [] where every state is one; states [M, 30]."""
    found = []
    for name, column in zip(FEATURES, states.T, strict=True):
        bad = int((~np.isfinite(column) | (column < 0) | (column > 1)).sum())
        if bad:
            found.append(f"{name} is not finite or outside 0 to 1 in {bad} of {len(column)} rows")
    if len(states) > 1 and not found and (states == states[0]).all():
        found.append(f"all {len(states)} rows are one and the same state")
    return found


def drift_within_bounds(reference: States | None, new: States, bounds: Gates) -> Verdict:
    """Refuses impossible states; warns of features that are far from the champion's.

    Args:
        reference: states [N, 30] that the champion learned from, None where there is no champion.
        new: states [M, 30] that only the challenger learned from.
        bounds: the gates' section of the configuration.
    """
    if wrong := impossible(new):
        return Verdict(False, "; ".join(wrong))
    if reference is None or not len(reference):
        return Verdict(True, "does not apply: there is no champion to differ from")
    if not len(new):
        return Verdict(True, "no rows are new to the champion")
    found = measure(reference, new)
    far = {
        feature: (found.psi[feature], found.ks[feature])
        for feature in FEATURES
        if found.psi[feature] > bounds.drift_psi and found.ks[feature] > bounds.drift_ks
    }
    figures = {"psi": found.psi, "ks": found.ks, "mmd": found.mmd, "new_rows": len(new)}
    reason = f"{len(far)} of {len(FEATURES)} features have drifted (MMD {found.mmd:.3f})"
    if not far:
        return Verdict(True, reason, figures=figures)
    worst = sorted(far, key=lambda feature: -far[feature][0])[:5]
    parts = [f"{one} (PSI {far[one][0]:.2f}, KS {far[one][1]:.2f})" for one in worst]
    return Verdict(False, f"{reason}, most of all {', '.join(parts)}", "WARN", figures)
