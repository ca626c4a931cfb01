"""Stopping rules found by one sort are those that trying every threshold finds."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.evaluation.stopping_rules import Stopping

GAMMA = 0.9
LEVELS = (-1.0, 0.5, 1.5, 2.5, 9.0)


def rows_of(lengths: list[int], seed: int) -> tuple[Columns, np.ndarray]:
    rng = np.random.default_rng(seed)
    last = np.zeros(sum(lengths), dtype=np.bool_)
    last[np.cumsum(lengths) - 1] = True
    malicious = np.repeat(rng.random(len(lengths)) < 0.5, lengths)
    rewards = rng.normal(size=(len(last), 5)).astype(np.float32)
    score = rng.integers(0, 4, len(last)).astype(np.float64)
    return {"last": last, "malicious": malicious, "rewards": rewards}, score


def value(
    rows: Columns, score: np.ndarray, rule: tuple[int, int, float, float], *, stays: bool = True
) -> float:
    """Mean return of (act, band, threshold, act_threshold), window after window."""
    act, band, threshold, act_threshold = rule
    total, discount, running, isolated = 0.0, 1.0, True, False
    for reward, now, last in zip(rows["rewards"], score, rows["last"], strict=True):
        if running:
            action = act if now > act_threshold else band if now > threshold else 0
            isolated = action == 1 or (isolated and stays)
            total += discount * float(reward[action if action > 1 else int(isolated)])
            running = action < 2
        discount *= GAMMA
        if last:
            discount, running, isolated = 1.0, True, False
    return total / int(rows["last"].sum())


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
    stays=st.booleans(),
)
def test_the_best_thresholds_are_the_best_of_all(
    lengths: list[int], seed: int, stays: bool
) -> None:
    rows, score = rows_of(lengths, seed)
    stopping = Stopping(rows, GAMMA, isolation_stays=stays)
    for band in (False, True):
        tried = [
            (act, kind, low, high if band else low)
            for act, kind, low, high in product((2, 3), (1, 4), LEVELS, LEVELS)
        ]
        best = stopping.best(score, band=band)
        rule = (best.act, best.band, best.threshold, best.act_threshold)
        assert np.isclose(best.utility, value(rows, score, rule, stays=stays))
        wanted = max(value(rows, score, rule, stays=stays) for rule in tried)
        assert np.isclose(best.utility, wanted)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6), seed=st.integers(0, 10**6))
def test_a_sweep_gives_every_margin_its_return_and_shares(lengths: list[int], seed: int) -> None:
    rows, score = rows_of(lengths, seed)
    stopping = Stopping(rows, GAMMA)
    sweep = stopping.sweep(score, np.full(len(score), 3))
    highest = np.maximum.reduceat(score, stopping.starts)
    for margin, utility, contained, interrupted in zip(*sweep, strict=True):
        assert np.isclose(utility, value(rows, score, (3, 4, margin, margin)))
        for share, of in ((contained, stopping.malicious), (interrupted, ~stopping.malicious)):
            if of.any():
                assert np.isclose(share, (highest[of] > margin).mean())
            else:
                assert np.isnan(share)
