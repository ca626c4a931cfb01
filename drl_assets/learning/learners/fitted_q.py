"""The default learner: full-information fitted Q with lambda-returns, by an ensemble over sessions.

Because the telemetry of a recording is exogenous, the reward and the next state of all five actions
are known at every recorded step (Sinclair et al. 2022, arXiv 2207.06272), at every isolation level.
So there is nothing to explore: the returns of all actions are regressed on the state. Each member
of the ensemble leaves one fold of sessions out. What a row is worth to the greedy policy is always
asked of the member that has not seen its session, with frozen weights (a moving average of the
learned ones), a few times per run; and on these answers the posterior of malice is calibrated. A
policy that has memorised its sessions is thus trained, and judged, by what it does on others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from drl_assets.learning.data import trajectories
from drl_assets.learning.data.episodes import Bools, Floats, Ints
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.learners.lambda_returns import masked_q, targets
from drl_assets.learning.learners.mlp_ensemble import Layers, Stack
from drl_assets.learning.learners.networks import HEADS, PosteriorQNetwork
from drl_core.policy.actions import ACTION_COUNT, allowed

CHUNK = 16_384
"""Rows that go through a network at once."""
LEAST_SCALE = 0.02
"""A feature that hardly varies is not blown up further than to this standard deviation."""
RECORDED_SHARE = 0.7
"""Share of the rows drawn at the recording's own isolation level; the rest is at raised ones."""


@dataclass(frozen=True)
class FittedConfig:
    """Hyper-parameters of the default preset."""

    gradient_steps: int = 5000
    batch_size: int = 128
    """Rows per member."""
    learning_rate: float = 1e-2
    """Falls to zero along a cosine."""
    weight_decay: float = 0.1
    """Decoupled, on weights (AdamW)."""
    input_noise: float = 0.1
    """Standard deviation of Gaussian noise on the standardised features."""
    calibrate: bool = True
    """Whether the posterior of malice is calibrated on left-out sessions."""
    gamma: float = 0.99
    """Discount per window."""
    trace: float = 0.95
    """Lambda of the lambda-returns."""
    target_updates: int = 10
    """How often in a run the targets are computed anew from the averaged weights."""
    average: float = 0.998
    """Decay of the moving average of the weights."""
    clip: float = 10.0
    """Bound of the norm of each member's gradient."""
    members: int = 4
    """Of the ensemble; each leaves one fold of sessions out."""


@dataclass
class FittedState:
    """Everything that training needs to go on bit for bit."""

    stack: Stack
    """The members' learned weights and Adam's moments."""
    averaged: Layers
    """Moving average of the weights: what is served."""
    frozen: Layers
    """The average as it was at the last target update."""
    mean: Tensor
    scale: Tensor
    """Of the features, [30] each."""
    calibration: Tensor
    """(slope, offset) of the logit, [2], on the CPU."""
    rng: np.random.Generator
    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Mean loss of a member between target updates."""
    max_gradient_norm: float = 0.0
    """Greatest norm of a member's gradient after clipping."""

    @property
    def network(self) -> PosteriorQNetwork:
        """The averaged ensemble as a network of its own, on the CPU."""
        network = PosteriorQNetwork(self.stack.widths[1:-1], len(self.stack))
        with torch.no_grad():
            for into, of in zip(network.weights, self.averaged.weights, strict=True):
                into.copy_(of)
            for into, of in zip(network.biases, self.averaged.biases, strict=True):
                into.copy_(of)
        network.mean.copy_(self.mean)
        network.scale.copy_(self.scale)
        network.slope, network.offset = self.calibration.clone()
        return network


def start(
    config: FittedConfig,
    rows: Columns,
    hidden_layers: Sequence[int],
    seed: int,
    device: torch.device,
    champion: PosteriorQNetwork | None = None,
) -> FittedState:
    """State before the first step.

    Args:
        config: hyper-parameters.
        rows: of which the features' mean and scale are taken.
        hidden_layers: of each member; Xavier-initialised, each member from a seed of its own.
        seed: of everything.
        device: where the members live.
        champion: what to go on from instead (warm start); of the same sizes.
    """
    widths = [trajectories.ROW_COLUMNS["state"][0][1], *hidden_layers, HEADS]
    stack = Stack(widths, config.members, config.batch_size, device=device)
    _fill(stack, champion, seed)
    recorded = torch.from_numpy(rows["state"][:, 0])
    scale = recorded.std(dim=0, correction=0).clamp(min=LEAST_SCALE)
    return FittedState(
        stack,
        stack.copy(),
        stack.copy(),
        (champion.mean.clone() if champion else recorded.mean(dim=0)).to(device),
        (champion.scale.clone() if champion else scale).to(device),
        torch.stack((champion.slope, champion.offset)) if champion else torch.tensor([1.0, 0.0]),
        np.random.default_rng(seed),
    )


def _fill(stack: Stack, champion: PosteriorQNetwork | None, seed: int) -> None:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        if champion is not None:
            for into, of in zip(stack.parameters.weights, champion.weights, strict=True):
                into.copy_(of)
            for into, of in zip(stack.parameters.biases, champion.biases, strict=True):
                into.copy_(of)
            return
        for member in range(len(stack)):
            torch.manual_seed(seed + member)
            for (i, o), weight in zip(
                pairwise(stack.widths), stack.parameters.weights, strict=True
            ):
                weight[member].copy_(nn.init.xavier_uniform_(torch.empty(o, i)).T)


def left_out(state: FittedState, x: Tensor, rows: Columns) -> Floats:
    """What the frozen member that has not seen a row's session says of it.

    Args:
        state: the members.
        x: [N * L, 30], the rows' standardised features.
        rows: N rows with their folds; where no fold was made, the members' mean is taken.

    Returns:
        float64 [N, L, 11].
    """
    count, levels = rows["level"].shape
    x = x.view(count, levels, -1)
    result = np.zeros((count, levels, HEADS))
    for k, member in enumerate(state.frozen.members):
        of = np.flatnonzero((rows["fold"] == k) | (rows["fold"] < 0))
        share = np.where(rows["fold"][of] < 0, 1 / len(state.stack), 1.0)
        for low in range(0, len(of), CHUNK // levels):
            chosen = of[low : low + CHUNK // levels]
            h = x[torch.from_numpy(chosen).to(x.device)].flatten(0, 1)
            for i, (weight, bias) in enumerate(member):
                h = torch.addmm(bias, h.relu_() if i else h, weight)
            heads = h.double().cpu().numpy().reshape(len(chosen), levels, HEADS)
            result[chosen] += heads * share[low : low + CHUNK // levels, None, None]
    return result


def calibrate(logit: Floats, rows: Columns) -> Tensor:
    """Slope and offset of the logit (Platt 1999), by likelihood on left-out sessions, [2].

    Every trajectory counts alike, all together as much as there are sessions, since windows and
    trajectories of one session are no independent evidence; a normal prior holds slope and offset
    to (1, 0) where there is little.

    Args:
        logit: [N], of members that have not seen the row's session.
        rows: N rows.
    """
    begin = trajectories.starts(rows["last"])
    lengths = np.diff(np.append(begin, len(logit)))
    weight = np.repeat(1 / lengths, lengths) / len(begin) * len(np.unique(rows["session"]))
    sign = np.where(rows["malicious"], 1.0, -1.0)

    def objective(parameters: Floats) -> tuple[float, Floats]:
        slope, offset = parameters
        margin = sign * (slope * logit + offset)
        slack = -sign * weight / (1 + np.exp(np.clip(margin, -500, 500)))
        loss = (weight * np.logaddexp(0, -margin)).sum()
        prior = 0.5 * (slope - 1) ** 2 + 0.05 * offset**2
        gradient = np.array([(slack * logit).sum() + slope - 1, slack.sum() + 0.1 * offset])
        return float(loss + prior), gradient

    found = minimize(
        objective, np.array([1.0, 0.0]), jac=True, bounds=[(0.02, 10.0), (-20.0, 20.0)]
    )
    return torch.tensor(found.x, dtype=torch.float32)


def utility_left_out(state: FittedState, rows: Columns, config: FittedConfig) -> Floats:
    """Discounted return of each trajectory under the member that has not seen its session, [E]."""
    heads = left_out(state, _standardised(state, rows), rows)
    ended = {**rows, "terminated": rows["last"]}  # nothing is owed beyond the record
    y = targets(heads, state.calibration, ended, config.gamma, 1.0)
    begin = trajectories.starts(rows["last"])
    greedy = masked_q(heads, state.calibration, rows)[begin, 0].argmax(axis=1)
    result: Floats = y[begin, 0, greedy]
    return result


def _standardised(state: FittedState, rows: Columns) -> Tensor:
    x = torch.from_numpy(rows["state"]).flatten(0, 1).to(state.mean.device)
    return (x - state.mean) / state.scale


def fit(
    state: FittedState,
    rows: Columns,
    config: FittedConfig,
    on_refresh: Callable[[FittedState], None] = lambda _: None,
    recent: Bools | None = None,
) -> None:
    """Train until `config.gradient_steps`, in place.

    Args:
        state: where to begin; a state restored from a checkpoint goes on bit for bit.
        rows: the replay, N rows of `trajectories.ROW_COLUMNS`.
        config: hyper-parameters.
        on_refresh: called after each stretch between target updates, to save or show progress.
        recent: [N], rows that half of every batch is drawn from (default: all alike).

    Raises:
        FloatingPointError: the loss is not finite.
    """
    x = _standardised(state, rows)
    mask = torch.from_numpy(allowed(rows["level"].reshape(-1))).to(x.device)
    malicious = torch.from_numpy(rows["malicious"].repeat(rows["level"].shape[1])).to(x.device)
    groups = _groups(rows["fold"], config.members, recent)
    period = -(-config.gradient_steps // config.target_updates)
    while state.step < config.gradient_steps:
        y = refresh(state, x, rows, config)
        y = torch.where(mask, y.to(x.device), 0.0)
        steps = min(period, config.gradient_steps - state.step)
        drawn = _draw(groups, rows["level"].shape[1], steps, config.batch_size, state.rng)
        stretch = []
        for chosen in torch.from_numpy(drawn).to(x.device):
            batch = x[chosen], y[chosen], mask[chosen], malicious[chosen]
            stretch.append(_gradient_step(state, *batch, config))
        losses, norms = (torch.stack(parts) for parts in zip(*stretch, strict=True))
        state.max_gradient_norm = max(state.max_gradient_norm, float(norms.max()))
        state.losses.append(float(losses.mean()))
        if not np.isfinite(state.losses[-1]):
            raise FloatingPointError(
                f"loss is {state.losses[-1]} at step {state.step}: lower learning_rate"
            )
        on_refresh(state)
    state.frozen.flat.copy_(state.averaged.flat)
    if config.calibrate and rows["fold"].max(initial=-1) >= 0:
        state.calibration = calibrate(left_out(state, x, rows)[:, 0, 0], rows)


def refresh(state: FittedState, x: Tensor, rows: Columns, config: FittedConfig) -> Tensor:
    """Freeze the averaged weights, calibrate them, and compute the targets, [N * L, 5]."""
    state.frozen.flat.copy_(state.averaged.flat)
    heads = left_out(state, x, rows)
    if config.calibrate and state.step and rows["fold"].max(initial=-1) >= 0:
        state.calibration = calibrate(heads[:, 0, 0], rows)
    y = targets(heads, state.calibration, rows, config.gamma, config.trace).reshape(
        -1, ACTION_COUNT
    )
    return torch.from_numpy(y.astype(np.float32))


def _groups(fold: npt.NDArray[np.int8], members: int, recent: Bools | None) -> list[list[Ints]]:
    """For each member the rows of other folds: recent ones and older ones, where there are both."""
    parts = [np.ones(len(fold), dtype=np.bool_)] if recent is None else [recent, ~recent]
    found = [[np.flatnonzero(part & (fold != k)) for part in parts] for k in range(members)]
    return [[part for part in member if len(part)] for member in found]


def _draw(
    groups: list[list[Ints]], levels: int, steps: int, batch: int, rng: np.random.Generator
) -> Ints:
    """Flat row numbers of every batch of a stretch, [steps, K, batch]."""
    rows = np.empty((steps, len(groups), batch), dtype=np.int64)
    for k, parts in enumerate(groups):
        edges = np.linspace(0, batch, len(parts) + 1).astype(int)
        for part, (low, high) in zip(parts, pairwise(edges), strict=True):
            rows[:, k, low:high] = part[rng.integers(len(part), size=(steps, high - low))]
    level = np.zeros(rows.shape, dtype=np.int64)
    if levels > 1:
        raised = rng.integers(1, levels, size=rows.shape)
        level = np.where(rng.random(rows.shape) < RECORDED_SHARE, 0, raised)
    return rows * levels + level


def _gradient_step(
    state: FittedState,
    x: Tensor,
    y: Tensor,
    mask: Tensor,
    malicious: Tensor,
    config: FittedConfig,
) -> tuple[Tensor, Tensor]:
    """One batch for every member; returns losses [K] and the gradients' norms after clipping [K].

    The loss of a row is the cross-entropy of its label plus the mean squared error of the Q-values
    given that label; the other label's head learns nothing from it.
    """
    noise = torch.from_numpy(state.rng.standard_normal(x.shape, dtype=np.float32)).to(x.device)
    heads = state.stack.forward(torch.add(x, noise, alpha=config.input_noise))
    label = malicious.to(heads.dtype)
    surprise = torch.sigmoid(heads[..., 0]) - label
    benign, bad = heads[..., 1 : 1 + ACTION_COUNT], heads[..., 1 + ACTION_COUNT :]
    error = torch.where(mask, torch.where(malicious[..., None], bad, benign) - y, 0.0)
    slope = error * (2 / (ACTION_COUNT * x.shape[1]))
    d_out = torch.cat(
        (
            (surprise / x.shape[1])[..., None],
            slope * ~malicious[..., None],
            slope * malicious[..., None],
        ),
        dim=-1,
    )
    losses = nn.functional.binary_cross_entropy_with_logits(heads[..., 0], label, reduction="none")
    losses = losses.mean(dim=1) + error.square().mean(dim=(1, 2))
    state.stack.backward(d_out)
    norms = state.stack.clip(config.clip)
    progress = state.step / config.gradient_steps
    state.stack.step(
        config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress)), config.weight_decay
    )
    state.step += 1
    # early steps count for less, so that a run does not start from its first weights' average
    state.stack.average_into(state.averaged, min(config.average, state.step / (state.step + 10)))
    return losses, norms.clamp(max=config.clip)


def dump(state: FittedState) -> dict[str, Any]:
    """The state as tensors, numbers and a generator, for `checkpoint.save_progress`."""
    return {
        "stack": state.stack.dump(),
        "averaged": state.averaged.flat,
        "calibration": state.calibration,
        "mean": state.mean,
        "scale": state.scale,
        "rng": state.rng,
        "step": state.step,
        "losses": state.losses,
        "max_gradient_norm": state.max_gradient_norm,
    }


def restore(state: FittedState, saved: dict[str, Any]) -> None:
    """Bring a fresh state to where `dump` was called; `fit` refreshes the frozen weights itself."""
    state.stack.restore(saved["stack"])
    state.averaged.flat.copy_(saved["averaged"])
    for name in ("calibration", "mean", "scale", "rng", "step", "losses", "max_gradient_norm"):
        setattr(state, name, saved[name])
