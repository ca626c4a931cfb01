"""Model selection: how much to regularise, by cross-validation over whole sessions.

How far a policy may trust the details of its recordings differs from source to source: noise on the
inputs that saves one harms another. So a short run is made with each candidate, and the one whose
members have the highest utility on their left-out sessions goes on to be trained in full, with the
runner-up, since a short run cannot tell what only a long one overfits. What was tried, what it gave
and what it cost is part of the checkpoint.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict, TypeVar

import numpy as np

from drl_assets.learning.data.episodes import Floats
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.data.trajectories import starts
from drl_assets.learning.learners import fitted_q
from drl_assets.learning.learners.fitted_q import FittedConfig
from drl_assets.learning.learners.networks import choose_device
from drl_core.settings import Learning


class Candidate(NamedTuple):
    """A regularisation; see `FittedConfig`."""

    input_noise: float
    weight_decay: float


CANDIDATES = tuple(
    Candidate(*pair)
    for pair in ((0.0, 0.1), (0.0, 1.0), (0.25, 0.1), (0.5, 0.1), (0.5, 1.0), (1.0, 0.1))
)


FINALISTS = 2
"""Candidates that are trained in full."""


class Trial(TypedDict):
    """A candidate's short run; a plain dictionary, as checkpoints and manifests keep it."""

    input_noise: float
    weight_decay: float
    utility: float
    """Mean discounted return on left-out sessions."""
    standard_error: float
    """Of the utility, sessions as clusters."""
    cpu_s: float


@dataclass(frozen=True)
class ModelSelection:
    """How the hyper-parameters were chosen."""

    validated: bool
    """Whether sessions could be left out at all."""
    chosen_on_rows: int
    """Rows of the replay when the regularisation was chosen."""
    validation: list[Trial] = field(default_factory=list)
    left_out_utility: float | None = None
    """Out-of-fold utility of the policy that was kept."""
    finalists_left_out_utility: list[float] | None = None


Config = TypeVar("Config", bound=FittedConfig)


def select_finalists(
    rows: Columns,
    config: Config,
    learning: Learning,
    on_candidate: Callable[[int, int], None] = lambda done, steps: None,
) -> tuple[list[Config], list[Trial]]:
    """The configurations of highest out-of-fold utility, the best first.

    Args:
        rows: training rows with their folds.
        config: what the candidates are variations of.
        learning: sizes, seed, device, and `validation_steps`, the gradient steps of each candidate.
        on_candidate: called with how many candidates are done, and the steps of each.

    Returns:
        FINALISTS configurations, and the trial of each candidate.
    """
    device, steps = choose_device(learning.device), learning.validation_steps
    trials: list[Trial] = []
    for done, candidate in enumerate(CANDIDATES):
        began = time.process_time()
        short = dataclasses.replace(_with(config, candidate), gradient_steps=steps)
        state = fitted_q.start(short, rows, learning.member_layers, learning.seed, device)
        fitted_q.fit(state, rows, short)
        returns = fitted_q.out_of_fold_utility(state, rows, short)
        trials.append(
            Trial(
                input_noise=candidate.input_noise,
                weight_decay=candidate.weight_decay,
                utility=float(returns.mean()),
                standard_error=_clustered_error(returns, rows),
                cpu_s=time.process_time() - began,
            )
        )
        on_candidate(done + 1, steps)
    ranked = np.argsort([-one["utility"] for one in trials], kind="stable")[:FINALISTS]
    return [_with(config, CANDIDATES[one]) for one in ranked], trials


def _with(config: Config, one: Candidate) -> Config:
    return dataclasses.replace(config, input_noise=one.input_noise, weight_decay=one.weight_decay)


def _clustered_error(returns: Floats, rows: Columns) -> float:
    """Standard error of a mean over trajectories whose sessions are independent."""
    _, session = np.unique(rows["session"][starts(rows["last"])], return_inverse=True)
    totals = np.bincount(session, weights=returns - returns.mean())
    clusters = len(totals)
    scale = clusters / max(clusters - 1, 1)
    return float(np.sqrt(scale * (totals**2).sum()) / len(returns))


def explain(hyperparameters: Mapping[str, Any]) -> str:
    """One sentence for the person who trained: what was chosen, and on what evidence."""
    noise, decay = hyperparameters["input_noise"], hyperparameters["weight_decay"]
    chosen = f"input noise {noise:g}, weight decay {decay:g}"
    if not hyperparameters["validated"]:
        return (
            f"not validated: of one class there are fewer than two sessions, so {chosen} are "
            "defaults and nothing is calibrated; add recordings of more sessions of both classes"
        )
    tried = hyperparameters["validation"]
    spent = sum(one["cpu_s"] for one in tried)
    return (
        f"{chosen}: of {len(tried)} candidates ({spent:.0f} CPU s) the one of highest utility on "
        f"left-out sessions, {hyperparameters['left_out_utility']:.3f} an episode"
    )
