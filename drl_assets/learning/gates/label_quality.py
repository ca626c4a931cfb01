"""Data-poisoning check: does the champion, which has not learned the new labels, contradict them?

Rows with their labels and the champion's network come in, a verdict comes out. Labels that are the
champion's predictions inverted are poisoned or mixed up, and a challenger that learned them is
refused. Labels that merely surprise it are what a new kind of attack looks like too: a warning that
names the sessions. What surprises and harms is left to the comparison on held-out sessions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.special import expit

from drl_assets.learning.data.episodes import Bools, Floats
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.data.trajectories import starts
from drl_assets.learning.evaluation.bootstrap import Interval, SessionBootstrap, quantiles
from drl_assets.learning.gates.verdicts import Verdict
from drl_assets.learning.learners.checkpoint import Checkpoint
from drl_assets.learning.learners.networks import PosteriorQNetwork
from drl_core.settings import Gates

CHUNK = 16_384
"""Rows that go through the network at once."""
NAMED = 5
"""Sessions named in a verdict."""


@dataclass(frozen=True)
class Predictions:
    """A champion's predictions for E labelled episodes; every array is [E]."""

    logit: Floats
    """Mean over the episode's windows of the logit of malice."""
    surprise: Floats
    """Mean log-loss of the label over the windows, in nats."""
    malicious: Bools
    session: list[str]


def champion_predictions(
    champion: Checkpoint, new: pl.DataFrame
) -> tuple[Predictions, Predictions]:
    """The champion's out-of-fold predictions on its own replay, and those on new experiences.

    Raises:
        TypeError: its network has no posterior of malice.
    """
    network = champion.network()
    if not isinstance(network, PosteriorQNetwork):
        raise TypeError(f"{champion.algorithm.title} has no posterior of malice")
    of_new = predict(
        network,
        new["state"].to_numpy(),
        new["is_malicious"].to_numpy(),
        new["session_id"].to_list(),
        new["episode_start"].to_numpy(),
    )
    return predict_out_of_fold(network, champion.replay), of_new


def predict(
    network: PosteriorQNetwork,
    states: Floats,
    malicious: Bools,
    session: list[str],
    first: Bools,
    fold: Any = None,
) -> Predictions:
    """The champion's predictions on rows, episode after episode.

    Args:
        network: the champion's.
        states: [N, 30].
        malicious: [N], labels.
        session: [N].
        first: [N], True on the first row of each episode.
        fold: [N], for rows that it learned from: the prediction is that of the member
            that has not seen a row's session (-1, or None: the mean of all members).
    """
    x = torch.from_numpy(np.array(states, dtype=np.float32))
    with torch.no_grad():
        parts = [network.heads(part)[..., 0].double().numpy() for part in torch.split(x, CHUNK)]
    logits = np.concatenate(parts, axis=1)
    logit = logits.mean(axis=0)
    if fold is not None:
        seen = np.flatnonzero(fold >= 0)
        logit[seen] = logits[fold[seen], seen]
    logit = float(network.slope) * logit + float(network.offset)
    chance = np.clip(expit(np.where(malicious, logit, -logit)), 1e-6, 1)
    begin = np.flatnonzero(first)
    length = np.diff(np.append(begin, len(logit)))
    if not len(begin):
        return Predictions(np.empty(0), np.empty(0), np.empty(0, dtype=np.bool_), [])
    return Predictions(
        np.add.reduceat(logit, begin) / length,
        np.add.reduceat(-np.log(chance), begin) / length,
        malicious[begin],
        [session[at] for at in begin],
    )


def predict_out_of_fold(network: PosteriorQNetwork, rows: Columns) -> Predictions:
    """Out-of-fold predictions on the champion's own replay."""
    first = np.zeros(len(rows["last"]), dtype=np.bool_)
    first[starts(rows["last"])] = True
    return predict(
        network,
        rows["state"][:, 0],
        rows["malicious"],
        [str(one) for one in rows["session"]],
        first,
        rows["fold"],
    )


def area_under_curve(score: Floats, malicious: Bools, weight: Floats | None = None) -> float:
    """Chance that a malicious episode scores above a benign one, ties half; NaN with one class.

    Args:
        score: [E].
        malicious: [E].
        weight: [E], how often each episode counts (default: once).
    """
    weight = np.ones(len(score)) if weight is None else weight
    _, rank = np.unique(score, return_inverse=True)
    bad = np.bincount(rank, weight * malicious)
    good = np.bincount(rank, weight * ~malicious)
    below = np.cumsum(good) - good / 2
    pairs = bad.sum() * good.sum()
    return float((bad * below).sum() / pairs) if pairs else float("nan")


def auc_interval(of: Predictions, seed: int = 0) -> Interval:
    """95 % interval, whole sessions resampled; None with fewer than two sessions of a class."""
    sessions = SessionBootstrap(of.session, seed)
    if min(sessions.having(of.malicious), sessions.having(~of.malicious)) < 2:
        return None
    drawn = [
        area_under_curve(of.logit, of.malicious, counts[sessions.member].astype(np.float64))
        for counts in sessions.counts
    ]
    return quantiles(np.asarray([one for one in drawn if not np.isnan(one)]))


def labels_consistent(own: Predictions, new: Predictions, bounds: Gates) -> Verdict:
    """Refuses new labels that contradict the champion beyond doubt, warns of surprising ones.

    Args:
        own: the champion's out-of-fold predictions on its replay.
        new: its predictions on the rows that only the challenger learned from.
        bounds: the gates' section of the configuration.
    """
    known, found = auc_interval(own), auc_interval(new)
    worst = _most_surprising(new)
    figures: dict[str, Any] = {
        "auc_on_new_labels": area_under_curve(new.logit, new.malicious),
        "auc_interval": found,
        "auc_left_out": area_under_curve(own.logit, own.malicious),
        "auc_left_out_interval": known,
        "log_loss_on_new_labels": float(new.surprise.mean()),
        "log_loss_left_out": float(own.surprise.mean()),
        "most_surprising_sessions": worst,
    }
    figures = {key: None if value != value else value for key, value in figures.items()}  # NaN
    sessions = ", ".join(worst)
    if found and known and found[1] < bounds.label_auc and known[0] > bounds.label_auc:
        reason = (
            f"the champion's AUC on the new labels is {figures['auc_on_new_labels']:.2f} "
            f"[{found[0]:.2f}, {found[1]:.2f}], {figures['auc_left_out']:.2f} on left-out ones of "
            f"its own: turned round? Look at {sessions}"
        )
        return Verdict(False, reason, figures=figures)
    beyond = SessionBootstrap(new.session).ratio(new.surprise, np.ones(len(new.surprise)))
    if beyond and beyond[0] > own.surprise.mean() + bounds.label_surprise:
        reason = (
            f"log-loss {new.surprise.mean():.2f} on the new labels, {own.surprise.mean():.2f} on "
            f"left-out ones of the champion's own: new behaviour, or wrong labels in {sessions}"
        )
        return Verdict(False, reason, "WARN", figures)
    if found is None:
        reason = "fewer than two new sessions of a class: turned labels would not be seen"
        return Verdict(False, reason, "WARN", figures)
    reason = f"the champion's AUC on the new labels is {figures['auc_on_new_labels']:.2f}"
    return Verdict(True, reason, figures=figures)


def _most_surprising(of: Predictions) -> list[str]:
    """Sessions of the highest mean log-loss, the worst first."""
    sessions = SessionBootstrap(of.session)
    sums = np.bincount(sessions.member, weights=of.surprise)
    mean = sums / np.bincount(sessions.member)
    return [sessions.names[at] for at in np.argsort(-mean, kind="stable")[:NAMED]]
