"""Regret of the learner on generators whose optimum is known.

A challenger's hyper-parameters come in, its regret on `oracle_mdps.G1` and `G2` comes out. What it
stands for is the learner, its code and configuration, so the answer is kept under their hash and
paid for once, not at every release.
"""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drl_assets.learning.data import trajectories
from drl_assets.learning.data.episodes import Ints
from drl_assets.learning.gates import oracle_mdps
from drl_assets.learning.gates.verdicts import Verdict
from drl_assets.learning.learners import (
    calibration,
    cross_fitting,
    fitted_q,
    lambda_returns,
    mlp_ensemble,
    networks,
)
from drl_assets.learning.learners.checkpoint import Checkpoint
from drl_assets.learning.learners.fitted_q import FittedConfig
from drl_assets.learning.learners.model_selection import Candidate
from drl_core.files import write_atomically
from drl_core.settings import Gates

TRAJECTORIES = 1_000
STEPS = 1_500
FRESH = 5_000
"""Trajectories that the regret is measured on."""
OF_THE_RECORDINGS = (*Candidate._fields, "gradient_steps")
"""Hyper-parameters that were chosen for the recordings, or depend on how many there are."""
MODULES = (
    fitted_q,
    calibration,
    cross_fitting,
    networks,
    oracle_mdps,
    lambda_returns,
    mlp_ensemble,
    trajectories,
)


def regret_within_bounds(shares: Mapping[str, float], bounds: Gates) -> Verdict:
    """On each generator the learner's regret, a share of always-monitor's, is within its bound.

    Args:
        shares: generator -> regret, see `regrets`.
        bounds: the gates' section of the configuration.
    """
    figures = {f"regret_share_{oracle}": share for oracle, share in shares.items()}
    text = ", ".join(f"{oracle} {share:.1%}" for oracle, share in shares.items())
    reason = f"regret as a share of always-monitor's: {text}; {bounds.oracle_regret:.0%} allowed"
    passed = all(share <= bounds.oracle_regret for share in shares.values())
    return Verdict(passed, reason, figures=figures)


def regrets_of(challenger: Checkpoint, cache: Path | None = None) -> dict[str, float]:
    """The regrets of the learner that trained a checkpoint."""
    return regrets(learner(challenger.hyperparameters), challenger.hidden_layers, cache)


def learner(hyperparameters: Mapping[str, Any]) -> FittedConfig:
    """The challenger's configuration as it is tried on the generators.

    The regularisation is an answer to its recordings, not a trait of the learner, so on other data
    the default one stands in; the number of steps is that of the trial.
    """
    known = {
        one.name: hyperparameters[one.name]
        for one in dataclasses.fields(FittedConfig)
        if one.name in hyperparameters and one.name not in OF_THE_RECORDINGS
    }
    return FittedConfig(**known, gradient_steps=STEPS)


def regrets(
    config: FittedConfig, member_layers: Sequence[int], cache: Path | None = None
) -> dict[str, float]:
    """Regret on each generator as a share of always-monitor's.

    Args:
        config: of the learner.
        member_layers: hidden layers of each member.
        cache: a folder that keeps the answer.
    """
    kept = None if cache is None else cache / f"oracles-{_key(config, member_layers)}.json"
    if kept is not None and kept.exists():
        known: dict[str, float] = json.loads(kept.read_bytes())
        return known
    found = {
        one.name: _regret(one, config, member_layers) for one in (oracle_mdps.G1, oracle_mdps.G2)
    }
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(found).encode())
    return found


def _regret(
    oracle: oracle_mdps.Oracle, config: FittedConfig, member_layers: Sequence[int]
) -> float:
    torch.set_num_threads(1)  # as in training
    rows = oracle.sample(TRAJECTORIES, seed=0)
    rows["fold"], _ = cross_fitting.assign_folds(rows, config.members)
    state = fitted_q.start(config, rows, member_layers, 0, torch.device("cpu"))
    fitted_q.fit(state, rows, config)
    learned = state.network

    def greedy(states: oracle_mdps.States) -> Ints:
        with torch.no_grad():
            best: Ints = learned(torch.from_numpy(np.ascontiguousarray(states))).argmax(1).numpy()
        return best

    return oracle.regret(greedy, FRESH).share


def _key(config: FittedConfig, member_layers: Sequence[int]) -> str:
    sources = [inspect.getsource(module) for module in MODULES]
    budget = (TRAJECTORIES, STEPS, FRESH, inspect.getsource(_regret), torch.__version__)
    parts = (dataclasses.astuple(config), list(member_layers), budget, sources)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
