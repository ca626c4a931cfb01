"""Classifiers of the supervised baselines: fitted by scikit-learn, kept and run as plain arrays.

A checkpoint holds numbers and tensors only (it loads with `weights_only=True`), and evaluation
needs no scikit-learn; so a linear model is folded into weights and a bias, and boosted trees into
arrays of nodes. Both give what scikit-learn's `decision_function` gives.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from drl_assets.learning.data.episodes import Bools, Floats, Ints
from drl_assets.learning.data.replay_buffer import Columns

ITERATIONS = (25, 50, 100)
"""Numbers of trees to choose from."""
LEAST_SPREAD = 1e-2
"""A feature that varies less than this in training is not scaled up to those that vary."""
WEIGHTED_BINS = 32
"""Values of a feature that trees tell apart where rows have weights: scikit-learn then spends a
millisecond on finding each, more than on the trees."""
CHUNK = 4096
"""Rows that go through the trees together."""

Hyperparameters = dict[str, Any]
Model = dict[str, Any]


class Family(NamedTuple):
    """A kind of scorer and the hyper-parameters to try."""

    fit: Callable[[Columns, Hyperparameters, int], list[tuple[Hyperparameters, Model]]]
    """Rows, hyper-parameters, seed -> models, with what they were fitted with."""
    grid: list[Hyperparameters]


def fit_logistic(
    rows: Columns, tried: Hyperparameters, seed: int
) -> list[tuple[Hyperparameters, Model]]:
    """Logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression

    states = rows["state"].astype(np.float64)
    mean, spread = states.mean(axis=0), np.maximum(states.std(axis=0), LEAST_SPREAD)
    model = LogisticRegression(C=tried["c"], solver="newton-cholesky", max_iter=100)
    model.fit((states - mean) / spread, rows["malicious"], _weights(rows, tried["weighting"]))
    weights = model.coef_[0] / spread
    bias = float(model.intercept_[0] - weights @ mean)
    return [(tried, {"kind": "linear", "weights": torch.from_numpy(weights), "bias": bias})]


def fit_boosting(
    rows: Columns, tried: Hyperparameters, seed: int
) -> list[tuple[Hyperparameters, Model]]:
    """Gradient boosting, once for every number of trees unless `tried` says which."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    counts = (tried["iterations"],) if "iterations" in tried else ITERATIONS
    weights = _weights(rows, tried["weighting"])
    model = HistGradientBoostingClassifier(
        max_leaf_nodes=tried["leaves"],
        max_bins=255 if weights is None else WEIGHTED_BINS,
        learning_rate=tried["learning_rate"],
        l2_regularization=tried["l2"],
        max_iter=max(counts),
        min_samples_leaf=min(20, max(len(rows["last"]) // 10, 1)),
        early_stopping=False,
        random_state=seed,
    )
    model.fit(rows["state"].astype(np.float64), rows["malicious"], weights)
    return [({**tried, "iterations": n}, tree_arrays(model, n)) for n in counts]


def _weights(rows: Columns, weighting: str) -> Floats | None:
    """Weight of each row: all alike (None), each class alike, or each session alike."""
    if weighting == "rows":
        return None
    column = rows["malicious" if weighting == "classes" else "session"]
    _, member, sizes = np.unique(column, return_inverse=True, return_counts=True)
    return len(member) / (len(sizes) * sizes[member])


def linear(model: Model, features: Floats) -> Floats:
    """Scores of a linear model; features [N, 30] -> [N]."""
    result: Floats = features @ model["weights"].numpy() + model["bias"]
    return result


def tree_arrays(model: Any, count: int) -> Model:
    """The first `count` trees of a fitted HistGradientBoostingClassifier, node after node.

    A leaf is its own child on both sides, so that every row can take `depth` steps in every tree.
    """
    nodes = [trees[0].nodes for trees in model._predictors[:count]]
    roots = np.cumsum([0, *(len(one) for one in nodes[:-1])])
    every = np.concatenate(nodes)
    base = np.repeat(roots, [len(one) for one in nodes])
    leaf = every["is_leaf"].astype(np.bool_)
    own = np.arange(len(every))
    children = {
        side: torch.from_numpy(np.where(leaf, own, base + every[side]))
        for side in ("left", "right")
    }
    return {
        "kind": "boosting",
        "feature": torch.from_numpy(np.where(leaf, 0, every["feature_idx"]).astype(np.int64)),
        "split": torch.from_numpy(np.where(leaf, np.inf, every["num_threshold"])),
        "value": torch.from_numpy(every["value"].astype(np.float64)),
        "roots": torch.from_numpy(roots),
        "depth": int(every["depth"].max()),
        "bias": float(model._baseline_prediction.item()),
        **children,
    }


def boosting(model: Model, features: Floats) -> Floats:
    """Scores of boosted trees; features [N, 30] -> [N]."""
    parts = [
        _boosting(model, features[low : low + CHUNK]) for low in range(0, len(features), CHUNK)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def _boosting(model: Model, features: Floats) -> Floats:
    feature, split, value = (model[name].numpy() for name in ("feature", "split", "value"))
    left, right = model["left"].numpy(), model["right"].numpy()
    row = np.arange(len(features))[:, None]
    node: Ints = np.tile(model["roots"].numpy(), (len(features), 1))
    for _ in range(model["depth"]):
        goes_left: Bools = features[row, feature[node]] <= split[node]
        node = np.where(goes_left, left[node], right[node])
    result: Floats = value[node].sum(axis=1) + model["bias"]
    return result
