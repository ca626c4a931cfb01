"""Supervised baselines, tuned as hard as the policy: what one would try before RL.

Trajectory rows come in, a dictionary of numbers and tensors comes out, which a checkpoint stores.
One feature, logistic regression and gradient boosting each give a score; one threshold (act) or
two (review or isolate below, act above) make it a rule. Hyper-parameters and thresholds are those
of the highest utility on scores of sessions that the scorer was not fitted on; then it is refitted
on all.
"""

from itertools import product
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from drl_assets.learning.data.episodes import Episodes, Floats, Ints
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.data.trajectories import as_recorded
from drl_assets.learning.evaluation import classifiers
from drl_assets.learning.evaluation.classifiers import Family, Hyperparameters
from drl_assets.learning.evaluation.stopping_rules import Rule, Stopping
from drl_assets.learning.learners.base import TrainingTask
from drl_assets.learning.learners.dqn import DQNConfig
from drl_core.policy import reward
from drl_core.policy.actions import Action
from drl_core.policy.features import FEATURES
from drl_core.policy.reward import CostTable
from drl_core.settings import Learning

GAMMA = 0.99
FOLDS = 3
SEARCH_ROWS = 10_000
"""Hyper-parameters are searched on at most so many rows, drawn by whole trajectories."""

COLUMNS = ("state", "rewards", "last", "malicious", "session")
"""Columns of the trajectory rows that are read."""

Baseline = dict[str, Any]

LOGISTIC = Family(
    classifiers.fit_logistic,
    [
        {"c": c, "weighting": weighting}
        for c, weighting in product((1e-3, 1e-2, 0.1, 10.0), ("rows", "classes", "sessions"))
    ],
)
BOOSTING = Family(
    classifiers.fit_boosting,
    [
        {"leaves": leaves, "learning_rate": rate, "l2": l2, "weighting": weighting}
        for leaves, (rate, l2), weighting in product(
            (4, 16), ((0.05, 1.0), (0.2, 10.0)), ("rows", "sessions")
        )
    ],
)
FAMILIES = {"logistic_regression": LOGISTIC, "gradient_boosting": BOOSTING}


def tune(rows: Columns, seed: int = 0, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Fit the baselines on training rows.

    Args:
        rows: columns of `trajectories.ROW_COLUMNS` or an oracle's; those as recorded are read.
        seed: of the folds and of the search's sample.
        known: an earlier result: its hyper-parameters are taken, models and thresholds are new.

    Returns:
        name -> {"kind", the scorer's numbers, those of a `stopping_rules.Rule`, "hyperparameters",
        "folds" (0 where there were too few sessions to leave any out), "about"}; numbers, texts and
        tensors only.
        Empty unless both classes are there.
    """
    rows = _monitored(rows)
    if rows["malicious"].all() or not rows["malicious"].any():
        return {}
    found: dict[str, Any] = {"threshold_rule": _threshold_rule(rows)}
    with threadpool_limits(limits=1):  # on so few rows more threads cost more than they give
        for name, family in FAMILIES.items():
            names = {name: False, f"{name}_2": True}
            if known and names.keys() <= known.keys():
                chosen = {one: known[one]["hyperparameters"] for one in names}
            else:
                chosen = _search(family, _sample(rows, seed), names, seed)
            found |= _fit(family, rows, names, chosen, seed)
    return found


def report_dqn(
    episodes: Episodes, learning: Learning, costs: CostTable = reward.DEFAULT_COSTS
) -> Baseline:
    """The report's DQN, trained on the same episodes in its own environment, as a baseline.

    Args:
        episodes: the training episodes.
        learning: seed, device, sizes and number of its episodes.
        costs: the cost table.
    """
    config = DQNConfig.from_settings(learning)
    algorithm = config.create(TrainingTask(episodes, learning, costs))
    algorithm.fit(lambda done, total, text: None, lambda: None)
    policy = algorithm.result()
    return {
        "kind": "network",
        "hidden_layers": policy.hidden_layers,
        "weights": {k: v.detach().cpu() for k, v in policy.network.state_dict().items()},
        "hyperparameters": policy.hyperparameters,
        "about": f"{policy.gradient_steps} gradient steps",
    }


def score(baseline: Baseline, features: Floats) -> Floats:
    """How much a tuned baseline wants to contain; features [N, 30] -> [N]."""
    if baseline["kind"] == "boosting":
        return classifiers.boosting(baseline, features)
    return classifiers.linear(baseline, features)


def act(baseline: Baseline, features: Floats) -> tuple[Ints, Floats]:
    """A tuned baseline's decisions; features [N, 30] -> (actions [N], scores [N])."""
    scores = score(baseline, features)
    monitor = int(Action.CONTINUE_MONITORING)
    below = np.where(scores > baseline["threshold"], baseline["band"], monitor)
    actions = np.where(scores > baseline["act_threshold"], baseline["act"], below)
    return actions.astype(np.int64), scores


def _stopping(rows: Columns) -> Stopping:
    return Stopping(rows, GAMMA, isolation_stays=bool(rows["isolation_stays"].all()))


def _monitored(rows: Columns) -> Columns:
    """The rows as recorded, without those under an isolation that was not in force."""
    found = as_recorded({name: rows[name] for name in COLUMNS})
    found["last"] = found["last"].copy()
    found["last"][-1:] = True  # a replay may end in the middle of a trajectory
    oracle = rows["state"].shape[1] == 1
    found["isolation_stays"] = np.full(len(found["last"]), not oracle)
    return found


def _threshold_rule(rows: Columns) -> Baseline:
    """Of all features, in both directions, the one whose best threshold has the most utility."""
    stopping = _stopping(rows)
    states = rows["state"].astype(np.float64)
    rules = {
        (column, sign): stopping.best(sign * states[:, column])
        for column in range(states.shape[1])
        for sign in (1.0, -1.0)
    }
    (column, sign), rule = max(rules.items(), key=lambda item: item[1].utility)
    weights = torch.zeros(len(FEATURES), dtype=torch.float64)
    weights[column] = sign
    return {
        "kind": "linear",
        "weights": weights,
        "bias": 0.0,
        **rule._asdict(),
        "hyperparameters": {},
        "folds": 0,
        "about": f"{'' if sign > 0 else '-'}{FEATURES[column]}",
    }


def _search(
    family: Family, rows: Columns, names: dict[str, bool], seed: int
) -> dict[str, Hyperparameters]:
    """The hyper-parameters of highest utility for each of the names."""
    stopping, folds = _stopping(rows), _folds(rows, seed)
    best: dict[str, tuple[float, Hyperparameters]] = {}
    for tried in family.grid:
        for hyperparameters, scores in _scores_left_out(family, rows, tried, folds, seed):
            for name, band in names.items():
                utility = stopping.best(scores, band=band).utility
                if name not in best or utility > best[name][0]:
                    best[name] = utility, hyperparameters
    return {name: chosen for name, (_, chosen) in best.items()}


def _fit(
    family: Family,
    rows: Columns,
    names: dict[str, bool],
    chosen: dict[str, Hyperparameters],
    seed: int,
) -> dict[str, Baseline]:
    """Thresholds on left-out sessions, the scorer on all rows."""
    stopping, folds = _stopping(rows), _folds(rows, seed)
    found: dict[str, Baseline] = {}
    scores: Floats | None = None
    model: dict[str, Any] = {}
    for at, (name, band) in enumerate(names.items()):
        if scores is None or chosen[name] != list(chosen.values())[at - 1]:
            ((_, scores),) = _scores_left_out(family, rows, chosen[name], folds, seed)
            ((_, model),) = family.fit(rows, chosen[name], seed)
        rule: Rule = stopping.best(scores, band=band)
        found[name] = {
            **model,
            **rule._asdict(),
            "hyperparameters": chosen[name],
            "folds": len(folds),
            "about": "all 30 features",
        }
    return found


def _scores_left_out(
    family: Family, rows: Columns, tried: Hyperparameters, folds: list[Ints], seed: int
) -> list[tuple[Hyperparameters, Floats]]:
    """Scores [M] of each row by a scorer that never saw its session; in-sample without folds."""
    everything = np.arange(len(rows["last"]))
    result: dict[int, tuple[Hyperparameters, Floats]] = {}
    for left_out in folds or [everything]:
        kept = np.setdiff1d(everything, left_out) if folds else everything
        fitted = family.fit({name: column[kept] for name, column in rows.items()}, tried, seed)
        for at, (hyperparameters, model) in enumerate(fitted):
            _, scores = result.setdefault(at, (hyperparameters, np.empty(len(everything))))
            scores[left_out] = score(model, rows["state"][left_out].astype(np.float64))
    return list(result.values())


def _folds(rows: Columns, seed: int) -> list[Ints]:
    """Rows of each fold of whole sessions, empty where a class has fewer than two sessions."""
    from sklearn.model_selection import StratifiedKFold

    names, member = np.unique(rows["session"], return_inverse=True)
    malicious = np.bincount(member, weights=rows["malicious"]) > 0
    fewest = min(n for n in (int(malicious.sum()), int((~malicious).sum())) if n or len(names) < 2)
    if (count := min(FOLDS, fewest)) < 2:
        return []
    split = StratifiedKFold(count, shuffle=True, random_state=seed).split(names, malicious)
    folds = [np.flatnonzero(np.isin(member, chosen)) for _, chosen in split]
    for left_out in folds:
        labels = np.delete(rows["malicious"], left_out)
        if labels.all() or not labels.any():
            return []
    return folds


def _sample(rows: Columns, seed: int) -> Columns:
    """Whole trajectories drawn at random, SEARCH_ROWS rows at most."""
    if len(rows["last"]) <= SEARCH_ROWS:
        return rows
    ends = np.flatnonzero(rows["last"])
    lengths = np.diff(np.append(-1, ends))
    order = np.random.default_rng(seed).permutation(len(ends))
    taken = np.zeros(len(ends), dtype=np.bool_)
    taken[order[: max(int((np.cumsum(lengths[order]) <= SEARCH_ROWS).sum()), 1)]] = True
    kept = np.repeat(taken, lengths)
    return {name: column[kept] for name, column in rows.items()}
