"""The default learner: full-information fitted Q with lambda-returns.

Because the telemetry of a recording is exogenous, the reward and the next state of all five actions
are known at every recorded step (Sinclair et al. 2022, arXiv 2207.06272). So there is nothing to
explore: Q is regressed on targets for all five actions at once. Targets come from frozen weights
(an exponential moving average of the learned ones), refreshed a few times per run; the return of
watching on follows the recording with lambda-returns under the frozen greedy policy.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from drl_assets.learning.episodes import Floats
from drl_assets.learning.network import QNetwork
from drl_assets.learning.replay import Columns
from drl_core.actions import MAX_ISOLATION_LEVEL, Action, allowed


@dataclass(frozen=True)
class FittedConfig:
    """Hyper-parameters of the default preset."""

    gradient_steps: int = 5000
    batch_size: int = 128
    learning_rate: float = 1e-3
    """Falls to zero along a cosine."""
    weight_decay: float = 1e-2
    """Decoupled, on weights (AdamW)."""
    input_noise: float = 0.05
    """Standard deviation of Gaussian noise on the features, against memorising a session."""
    gamma: float = 0.99
    """Discount per window."""
    trace: float = 0.95
    """Lambda of the lambda-returns."""
    target_updates: int = 10
    """How often in a run the targets are computed anew from the averaged weights."""
    average: float = 0.998
    """Decay of the moving average of the weights."""
    clip: float = 10.0
    """Bound of the gradient's norm."""
    isolation_trajectories: int = 1
    """Extra trajectories per episode, on which isolation is raised at random times."""


def targets(
    frozen: QNetwork, rows: Columns, config: FittedConfig, device: torch.device
) -> npt.NDArray[np.float32]:
    """Regression targets of all five actions at every row, from frozen weights, [M, 5].

    y(terminating a) = r_a;  y(isolate) = r + gamma * max Q(state after isolating);
    y(continue) = r + gamma * U(next),  U = (1 - lambda) max Q + lambda * y(greedy action).
    A truncated record is bootstrapped with its last state's own value; a terminated one with 0.
    """
    q = _q_values(frozen, rows["state"], device)
    q[~allowed(rows["level"])] = -np.inf
    best = q.max(axis=1)
    raised = np.minimum(rows["level"] + 1, MAX_ISOLATION_LEVEL)
    q_isolated = _q_values(frozen, rows["isolated_state"], device)
    q_isolated[~allowed(raised)] = -np.inf
    y = rows["rewards"].astype(np.float64)
    last, terminated = rows["last"], rows["terminated"]
    beyond = np.where(terminated, 0.0, best)
    y[:, Action.INCREASE_ISOLATION] += config.gamma * np.where(last, beyond, q_isolated.max(axis=1))
    greedy = q.argmax(axis=1)
    value = np.where(last, beyond, 0.0)  # of what comes after each row
    ends = np.flatnonzero(last)
    lengths = np.diff(np.append(-1, ends))
    for distance in range(int(lengths.max(initial=0))):  # backwards, all trajectories together
        running = lengths > distance
        row = ends[running] - distance
        y[row, 0] += config.gamma * value[row]
        worth = (1 - config.trace) * best[row] + config.trace * y[row, greedy[row]]
        inner = lengths[running] > distance + 1
        value[row[inner] - 1] = worth[inner]
    return y.astype(np.float32)


def _q_values(network: QNetwork, states: npt.NDArray[np.float32], device: torch.device) -> Floats:
    with torch.no_grad():
        parts = [
            network(torch.from_numpy(states[low : low + 65_536]).to(device)).cpu().numpy()
            for low in range(0, len(states), 65_536)
        ]
    return np.concatenate(parts).astype(np.float64)


@dataclass
class FittedState:
    """Everything that training needs to go on bit for bit."""

    network: QNetwork
    averaged: QNetwork
    frozen: QNetwork
    optimizer: torch.optim.Optimizer
    rng: np.random.Generator
    step: int
    losses: list[float]
    """Mean loss between target updates."""
    max_gradient_norm: float = 0.0
    """Greatest norm after clipping."""


def start(config: FittedConfig, network: QNetwork, seed: int, device: torch.device) -> FittedState:
    """State before the first step; `network` may be fresh or a champion's (warm start)."""
    network = network.to(device)
    averaged, frozen = copy.deepcopy(network), copy.deepcopy(network)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    return FittedState(network, averaged, frozen, optimizer, np.random.default_rng(seed), 0, [])


def fit(
    state: FittedState,
    rows: Columns,
    config: FittedConfig,
    device: torch.device,
    on_refresh: Callable[[FittedState], None] = lambda _: None,
) -> None:
    """Train until `config.gradient_steps`, in place.

    Args:
        state: where to begin; a state restored from a checkpoint goes on bit for bit.
        rows: the replay, columns of `trajectories.ROW_COLUMNS`.
        config: hyper-parameters.
        device: where the networks are.
        on_refresh: called after each target update, to save or to show progress.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    states = torch.from_numpy(rows["state"]).to(device)
    mask = torch.from_numpy(allowed(rows["level"])).to(device)
    period = -(-config.gradient_steps // config.target_updates)
    while state.step < config.gradient_steps:
        state.frozen.load_state_dict(state.averaged.state_dict())
        y = torch.from_numpy(targets(state.frozen, rows, config, device)).to(device)
        y = torch.where(mask, y, 0.0)
        until = min(state.step + period, config.gradient_steps)
        stretch = [
            torch.stack(_gradient_step(state, states, y, mask, config, device))
            for _ in range(until - state.step)
        ]
        loss, norm = (
            float(x)
            for x in (torch.stack(stretch).mean(0)[0], torch.stack(stretch).max(0).values[1])
        )
        state.max_gradient_norm = max(state.max_gradient_norm, norm)
        if not np.isfinite(loss):
            raise FloatingPointError(f"loss is {loss} at step {state.step}: lower learning_rate")
        state.losses.append(loss)
        on_refresh(state)


def _gradient_step(
    state: FittedState,
    states: Tensor,
    y: Tensor,
    mask: Tensor,
    config: FittedConfig,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """One batch; returns the loss and the gradient's norm after clipping."""
    index = torch.from_numpy(state.rng.integers(len(states), size=config.batch_size)).to(device)
    noise = torch.from_numpy(
        state.rng.standard_normal((config.batch_size, states.shape[1]), dtype=np.float32)
    ).to(device)
    for group in state.optimizer.param_groups:
        # a plain float: a checkpoint loads no numpy scalars
        group["lr"] = (
            config.learning_rate
            * 0.5
            * (1 + math.cos(math.pi * state.step / config.gradient_steps))
        )
    q = state.network(states[index] + config.input_noise * noise)
    error = torch.where(mask[index], q - y[index], 0.0)
    loss = error.square().mean()
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
    state.optimizer.step()
    state.step += 1
    # early steps count for less, so that a run does not start from its first weights' average
    decay = min(config.average, state.step / (state.step + 10))
    with torch.no_grad():
        torch._foreach_lerp_(
            list(state.averaged.parameters()), list(state.network.parameters()), 1 - decay
        )
    return loss.detach(), norm.clamp(max=config.clip)


def dump(state: FittedState) -> dict[str, Any]:
    """The state as tensors, numbers and a generator, for `checkpoint.save_progress`."""
    return {
        "network": state.network.state_dict(),
        "averaged": state.averaged.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "rng": state.rng,
        "step": state.step,
        "losses": state.losses,
        "max_gradient_norm": state.max_gradient_norm,
    }


def restore(state: FittedState, saved: dict[str, Any]) -> None:
    """Bring a fresh state to where `dump` was called; `fit` refreshes the frozen weights itself."""
    state.network.load_state_dict(saved["network"])
    state.averaged.load_state_dict(saved["averaged"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.rng, state.step = saved["rng"], saved["step"]
    state.losses, state.max_gradient_norm = saved["losses"], saved["max_gradient_norm"]
