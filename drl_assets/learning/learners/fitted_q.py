"""Full-information fitted Q-iteration with lambda-returns, by a cross-fitted ensemble.

Because the telemetry of a recording is exogenous, the reward and the next state of all five actions
are known at every recorded step (Sinclair et al. 2022, arXiv 2207.06272), at every isolation level.
So there is nothing to explore: the returns of all actions are regressed on the state. Each member
of the ensemble leaves one fold of sessions out. The TD target of a row is always computed from the
out-of-fold prediction of the member that has not seen its session, with a target network (a moving
average of the weights, frozen a few times per run); on the same predictions the posterior of malice
is calibrated. A policy that has memorised its sessions is thus trained, and judged, by what it does
on others. Read `fit` first, then `td_target`, `update`, `loss` and `loss_gradient`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from drl_assets.learning.data import trajectories
from drl_assets.learning.data.episodes import Bools, Floats, Ints
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.learners.calibration import platt_scaling
from drl_assets.learning.learners.lambda_returns import lambda_targets, masked_q
from drl_assets.learning.learners.mlp_ensemble import Layers, MLPEnsemble
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
    """Hyper-parameters of one fit."""

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
    """How often in a run the target network, and with it the TD targets, are refreshed."""
    average: float = 0.998
    """Decay of the moving average of the weights."""
    clip: float = 10.0
    """Bound of the norm of each member's gradient."""
    members: int = 4
    """Of the ensemble; each leaves one fold of sessions out."""


@dataclass
class FittedState:
    """Everything that training needs to resume bit for bit."""

    stack: MLPEnsemble
    """The members' learned weights and Adam's moments."""
    averaged: Layers
    """Moving average of the weights: what is served."""
    frozen: Layers
    """The target network: the average as it was at the last target update."""
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
        champion: warm start from its weights instead; of the same sizes.
    """
    widths = [trajectories.ROW_COLUMNS["state"][0][1], *hidden_layers, HEADS]
    stack = MLPEnsemble(widths, config.members, config.batch_size, device=device)
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


def _fill(stack: MLPEnsemble, champion: PosteriorQNetwork | None, seed: int) -> None:
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


def out_of_fold(state: FittedState, x: Tensor, rows: Columns) -> Floats:
    """Out-of-fold prediction: of each row by the frozen member that has not seen its session.

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


def out_of_fold_utility(state: FittedState, rows: Columns, config: FittedConfig) -> Floats:
    """Discounted return of each trajectory under the member that has not seen its session, [E]."""
    heads = out_of_fold(state, _standardised(state, rows), rows)
    ended = {**rows, "terminated": rows["last"]}  # nothing is owed beyond the record
    y = lambda_targets(heads, state.calibration, ended, config.gamma, 1.0)
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
    on_stretch: Callable[[FittedState], None] = lambda _: None,
    recent: Bools | None = None,
) -> None:
    """Train until `config.gradient_steps`, in place.

    Args:
        state: where to begin; a restored state resumes bit for bit.
        rows: the replay, N rows of `trajectories.ROW_COLUMNS`.
        config: hyper-parameters.
        on_stretch: called after the steps between two target updates, to save or show progress.
        recent: [N], rows that half of every batch is drawn from (default: all alike).

    Raises:
        FloatingPointError: the loss is not finite.
    """
    x = _standardised(state, rows)
    mask = torch.from_numpy(allowed(rows["level"].reshape(-1))).to(x.device)
    malicious = torch.from_numpy(rows["malicious"].repeat(rows["level"].shape[1])).to(x.device)
    groups = fold_groups(rows["fold"], config.members, recent)
    period = -(-config.gradient_steps // config.target_updates)
    while state.step < config.gradient_steps:
        y = torch.where(mask, td_target(state, x, rows, config).to(x.device), 0.0)
        steps = min(period, config.gradient_steps - state.step)
        drawn = draw_batches(groups, rows["level"].shape[1], steps, config.batch_size, state.rng)
        stretch = []
        for chosen in torch.from_numpy(drawn).to(x.device):
            batch = MiniBatch(x[chosen], y[chosen], mask[chosen], malicious[chosen])
            stretch.append(update(state, batch, config))
        losses, norms = (torch.stack(parts) for parts in zip(*stretch, strict=True))
        state.max_gradient_norm = max(state.max_gradient_norm, float(norms.max()))
        state.losses.append(float(losses.mean()))
        if not np.isfinite(state.losses[-1]):
            raise FloatingPointError(
                f"loss is {state.losses[-1]} at step {state.step}: lower learning_rate"
            )
        on_stretch(state)
    state.frozen.flat.copy_(state.averaged.flat)
    if config.calibrate and rows["fold"].max(initial=-1) >= 0:
        state.calibration = platt_scaling(out_of_fold(state, x, rows)[:, 0, 0], rows)


def td_target(state: FittedState, x: Tensor, rows: Columns, config: FittedConfig) -> Tensor:
    """Refresh the target network, calibrate it, and compute its TD(lambda) targets, [N * L, 5].

    The target network is the averaged weights, frozen here; a row's bootstrap values are those of
    the member that has not seen its session.
    """
    state.frozen.flat.copy_(state.averaged.flat)
    heads = out_of_fold(state, x, rows)
    if config.calibrate and state.step and rows["fold"].max(initial=-1) >= 0:
        state.calibration = platt_scaling(heads[:, 0, 0], rows)
    y = lambda_targets(heads, state.calibration, rows, config.gamma, config.trace)
    return torch.from_numpy(y.reshape(-1, ACTION_COUNT).astype(np.float32))


class MiniBatch(NamedTuple):
    """A mini-batch of each member."""

    x: Tensor
    """Standardised features, [K, B, 30]."""
    td_target: Tensor
    """[K, B, 5]."""
    mask: Tensor
    """Actions that are allowed, [K, B, 5]."""
    malicious: Tensor
    """Labels, [K, B]."""


def fold_groups(fold: npt.NDArray[np.int8], members: int, recent: Bools | None) -> list[list[Ints]]:
    """For each member the rows of other folds: recent ones and older ones, where there are both."""
    parts = [np.ones(len(fold), dtype=np.bool_)] if recent is None else [recent, ~recent]
    found = [[np.flatnonzero(part & (fold != k)) for part in parts] for k in range(members)]
    return [[part for part in member if len(part)] for member in found]


def draw_batches(
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


def update(state: FittedState, batch: MiniBatch, config: FittedConfig) -> tuple[Tensor, Tensor]:
    """One gradient step of every member; losses [K] and gradient norms after clipping [K]."""
    noise = torch.from_numpy(state.rng.standard_normal(batch.x.shape, dtype=np.float32))
    noisy = torch.add(batch.x, noise.to(batch.x.device), alpha=config.input_noise)
    heads = state.stack.forward(noisy)
    error = td_error(heads, batch)
    losses = loss(heads, error, batch)
    state.stack.backward(loss_gradient(heads, error, batch))
    norms = state.stack.clip(config.clip)
    progress = state.step / config.gradient_steps
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    state.stack.step(config.learning_rate * cosine, config.weight_decay)
    state.step += 1
    # early steps count for less, so that a run does not start from its first weights' average
    state.stack.average_into(state.averaged, min(config.average, state.step / (state.step + 10)))
    return losses, norms.clamp(max=config.clip)


def td_error(heads: Tensor, batch: MiniBatch) -> Tensor:
    """Q-values given the row's label minus their TD targets, [K, B, 5]; 0 where masked."""
    benign, bad = heads[..., 1 : 1 + ACTION_COUNT], heads[..., 1 + ACTION_COUNT :]
    q_values = torch.where(batch.malicious[..., None], bad, benign)
    return torch.where(batch.mask, q_values - batch.td_target, 0.0)


def loss(heads: Tensor, error: Tensor, batch: MiniBatch) -> Tensor:
    """Cross-entropy of the label plus the mean squared TD error, mean over the batch, [K]."""
    label = batch.malicious.to(heads.dtype)
    entropy = nn.functional.binary_cross_entropy_with_logits(heads[..., 0], label, reduction="none")
    return entropy.mean(dim=1) + error.square().mean(dim=(1, 2))


def loss_gradient(heads: Tensor, error: Tensor, batch: MiniBatch) -> Tensor:
    """The derivative of `loss` by the heads, [K, B, 11]; the other label's head learns nothing."""
    malicious, size = batch.malicious, batch.x.shape[1]
    surprise = torch.sigmoid(heads[..., 0]) - malicious.to(heads.dtype)
    slope = error * (2 / (ACTION_COUNT * size))
    of_benign, of_malicious = slope * ~malicious[..., None], slope * malicious[..., None]
    return torch.cat(((surprise / size)[..., None], of_benign, of_malicious), dim=-1)


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


def restore(state: FittedState, saved: Mapping[str, Any]) -> None:
    """Bring a fresh state to where `dump` was called; `fit` refreshes the target network."""
    state.stack.restore(saved["stack"])
    state.averaged.flat.copy_(saved["averaged"])
    for name in ("calibration", "mean", "scale", "rng", "step", "losses", "max_gradient_norm"):
        setattr(state, name, saved[name])
