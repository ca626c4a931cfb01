"""Oracle MDPs: generators whose optimal policy is known by backward induction, to measure regret.

`G1` and `G2` draw trajectories in the format the learners are fitted on (`ROW_COLUMNS`) and are
solved exactly by backward induction: windows are independent given the family, so the number of
windows seen and the up counts are a sufficient statistic. A count and a seed, or a policy (states
[N, 30] -> actions [N]), come in; rows, exact values, and the policy's regret come out.

What the generators have in common: a trajectory has 50 windows. A window shows every channel up or
down; then an action is chosen, paid for that window and discounted by 0.99 a window, so the first
decision has seen one window. Isolating holds for that window alone, may be repeated, and changes
nothing of what is observed. After the last window the artefact has ended by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drl_assets.learning.data.episodes import Bools, Floats, Ints
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.data.trajectories import name_hash
from drl_core.policy.actions import ACTION_COUNT, TERMINAL, Action
from drl_core.policy.features import FEATURE_COUNT

WINDOWS = 50
GAMMA = 0.99
SPANS = (2, 4, 8, 16, 32)
"""Spans of the exponential moving averages, in windows: each has the weight 2 / (span + 1)."""
_GO_ON = [action for action in Action if action not in TERMINAL]

States = npt.NDArray[np.float32]
Policy = Callable[[States], npt.NDArray[np.integer]]


class Regret(NamedTuple):
    """How much less than the optimum a policy returns."""

    mean: float
    """Optimum minus the policy's mean discounted return per trajectory."""
    standard_error: float
    """Standard error of `mean`."""
    share: float
    """`mean` as a share of always-monitor's exact regret."""


@dataclass(frozen=True, eq=False)
class Oracle:
    """A generator with F families, of which the first is benign, and C channels.

    Attributes:
        name: what reports call it.
        families: names of the families.
        prior: their probabilities, [F].
        p_up: probability that a channel is up in a window, [F, C].
        rewards: what each action is paid in each window, in hindsight, [50, F, 5].
    """

    name: str
    families: tuple[str, ...]
    prior: Floats
    p_up: Floats
    rewards: Floats

    @property
    def channels(self) -> int:
        """Number of channels, C."""
        return int(self.p_up.shape[1])

    def sample(self, count: int, seed: int) -> Columns:
        """Draw trajectories.

        Inputs of a state: t/T of the t windows seen; of each channel the up and the down count over
        T; of each channel the moving averages of SPANS, which begin at 0.5; uniform noise.

        Args:
            count: number of trajectories, at least 1.
            seed: same seed, same rows; sessions of different seeds are distinct; 0 <= seed < 2^31.

        Returns:
            Columns of `trajectories.ROW_COLUMNS` at one isolation level, `count` times 50 rows.

        Raises:
            ValueError: `count` or `seed` is out of range.
        """
        family, states = self._draw(count, seed, stream=0)
        last = np.zeros((count, WINDOWS), dtype=np.bool_)
        last[:, -1] = True
        kinds = [0] + [name_hash(f"oracle_{self.name}_{name}") for name in self.families[1:]]
        rows, per_row = count * WINDOWS, family.repeat(WINDOWS)
        return {
            "state": states.reshape(rows, 1, FEATURE_COUNT),
            "rewards": self._rewards_of(family).reshape(rows, 1, ACTION_COUNT).astype(np.float32),
            "level": np.zeros((rows, 1), dtype=np.int8),
            "last": last.reshape(rows),
            "terminated": last.reshape(rows).copy(),
            "malicious": per_row > 0,
            "session": ((seed << 32) + np.arange(count, dtype=np.int64)).repeat(WINDOWS),
            "attack_type": np.array(kinds, dtype=np.int64)[per_row],
            "fold": np.full(rows, -1, dtype=np.int8),
            "priority": np.zeros(rows, dtype=np.float32),
        }

    def posterior(self, ups: npt.ArrayLike, seen: npt.ArrayLike) -> Floats:
        """Probability of each family after `seen` [...] windows with up counts `ups` [..., C].

        Returns:
            Probabilities, [..., F].
        """
        up = np.asarray(ups, dtype=np.float64)
        down = np.asarray(seen, dtype=np.float64)[..., None] - up
        log = np.log(self.prior) + up @ np.log(self.p_up.T) + down @ np.log1p(-self.p_up.T)
        likelihood = np.exp(log - log.max(axis=-1, keepdims=True))
        share: Floats = likelihood / likelihood.sum(axis=-1, keepdims=True)
        return share

    @cached_property
    def q_tables(self) -> list[Floats]:
        """Optimal Q-values by backward induction.

        Returns:
            One table for each number n = 1..50 of windows seen, at index n - 1: [n + 1, .., n + 1,
            5], indexed by the up count of each channel, then by the action.
        """
        tables: list[Floats] = []
        next_value: Floats | None = None
        for seen in range(WINDOWS, 0, -1):
            belief = self.posterior(_grid(seen, self.channels), seen)
            q = belief @ self.rewards[seen - 1]
            if next_value is not None:
                go_on = GAMMA * self._expected(next_value, belief)
                q[..., _GO_ON] += go_on[..., None]
            next_value = q.max(axis=-1)
            tables.insert(0, q)
        return tables

    @cached_property
    def optimum(self) -> float:
        """Greatest expected discounted return of a trajectory."""
        before = self.posterior(_grid(0, self.channels), 0)
        return float(self._expected(self.q_tables[0].max(axis=-1), before).item())

    def q_values(self, states: States) -> Floats:
        """Optimal Q-values at sampled states [N, 30], [N, 5]; only the counts are looked at."""
        counts = np.rint(states[:, : 1 + 2 * self.channels] * WINDOWS).astype(np.int64)
        seen, ups = counts[:, 0], counts[:, 1::2]
        q = np.empty((len(states), ACTION_COUNT))
        for n in np.unique(seen):
            at = seen == n
            q[at] = self.q_tables[n - 1][tuple(ups[at].T)]
        return q

    def optimal_actions(self, states: States) -> Ints:
        """The optimal policy: actions [N] at sampled states [N, 30]."""
        best: Ints = self.q_values(states).argmax(axis=1)
        return best

    def constant_value(self, action: Action) -> float:
        """Exact expected discounted return of the policy that always chooses `action`."""
        paid = self.rewards[:, :, action] @ self.prior
        return float(paid[0] if action in TERMINAL else GAMMA ** np.arange(WINDOWS) @ paid)

    def regret(self, policy: Policy, count: int = 20_000, seed: int = 0) -> Regret:
        """Regret of a policy on fresh trajectories, which `sample` never draws.

        By the performance difference lemma it is the mean over trajectories of the discounted
        losses V*(s) - Q*(s, a) along the way, exact values both; so luck in rewards does not enter.

        Args:
            policy: maps states [N, 30] to actions [N], and depends on the states alone.
            count: number of trajectories, at least 2.
            seed: same seed, same trajectories, so that policies are compared in pairs.

        Raises:
            ValueError: `count` or `seed` is out of range, or the policy's actions are invalid.
        """
        if count < 2:
            raise ValueError(f"count must be at least 2 for a standard error, got {count}")
        _, states = self._draw(count, seed, stream=1)
        loss = np.zeros(count)
        running = np.arange(count)
        for t in range(WINDOWS):
            now = states[running, t]
            actions = _checked(policy(now), len(now))
            q = self.q_values(now)
            loss[running] += GAMMA**t * (q.max(axis=1) - q[np.arange(len(now)), actions])
            running = running[~np.isin(actions, TERMINAL)]
            if not len(running):
                break
        mean = float(loss.mean())
        monitoring = self.optimum - self.constant_value(Action.CONTINUE_MONITORING)
        return Regret(mean, float(loss.std(ddof=1) / np.sqrt(count)), mean / monitoring)

    def _draw(self, count: int, seed: int, stream: int) -> tuple[Ints, States]:
        """Families [E] and states [E, 50, 30]."""
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if not 0 <= seed < 2**31:
            raise ValueError(f"seed must be in 0..2^31-1, got {seed}")
        rng = np.random.default_rng([seed, stream])
        family = rng.choice(len(self.prior), size=count, p=self.prior)
        shape = count, WINDOWS, self.channels
        shown = rng.random(shape) < self.p_up[family][:, None]
        states = rng.random((count, WINDOWS, FEATURE_COUNT), dtype=np.float32)
        _observe(shown, states)
        return family, states

    def _rewards_of(self, family: Ints) -> Floats:
        return self.rewards.transpose(1, 0, 2)[family]

    def _expected(self, next_value: Floats, belief: Floats) -> Floats:
        """Expected value of `next_value` [n + 2, ..] one window on from beliefs [n + 1, .., F]."""
        total = np.zeros(belief.shape[:-1])
        for shown in product((0, 1), repeat=self.channels):
            chance = np.where(shown, self.p_up, 1 - self.p_up).prod(axis=1)
            cells = tuple(slice(up, up + len(belief)) for up in shown)
            total += belief @ chance * next_value[cells]
        return total


def returns(rows: Columns, actions: npt.NDArray[np.integer]) -> Floats:
    """Discounted return of each sampled trajectory when the action at every row is given.

    Args:
        rows: what `Oracle.sample` returned, through `trajectories.as_recorded`.
        actions: an action for each row, [N]; the first that terminates, quarantines or asks for a
            review ends its trajectory, and those after it do not count.

    Returns:
        Returns, [E], in the order of the trajectories.

    Raises:
        ValueError: `actions` are not N actions.
    """
    chosen = _checked(actions, len(rows["rewards"]))
    paid = rows["rewards"][np.arange(len(chosen)), chosen].astype(np.float64)
    stops = np.isin(chosen, TERMINAL).reshape(-1, WINDOWS)
    running: Bools = np.cumsum(stops, axis=1) - stops == 0
    total: Floats = (running * paid.reshape(-1, WINDOWS)) @ GAMMA ** np.arange(WINDOWS)
    return total


def _checked(actions: npt.NDArray[np.integer], count: int) -> Ints:
    chosen = np.asarray(actions)
    if chosen.shape != (count,) or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"actions must be {count} integers, got {chosen.shape} {chosen.dtype}")
    if not np.isin(chosen, list(Action)).all():
        raise ValueError(f"actions must be in 0..{ACTION_COUNT - 1}")
    return chosen.astype(np.int64)


def _grid(seen: int, channels: int) -> Ints:
    """All up counts after `seen` windows, [seen + 1, .., seen + 1, C]."""
    return np.moveaxis(np.indices((seen + 1,) * channels), 0, -1)


def _observe(shown: Bools, states: States) -> None:
    """Write the inputs that mean something over the noise in `states` [E, 50, 30], in place."""
    channels = shown.shape[2]
    seen = np.arange(1, WINDOWS + 1)[:, None]
    ups = shown.cumsum(axis=1)
    states[:, :, 0] = seen[:, 0] / WINDOWS
    states[:, :, 1 : 1 + 2 * channels : 2] = ups / WINDOWS
    states[:, :, 2 : 2 + 2 * channels : 2] = (seen - ups) / WINDOWS
    weight = np.tile(2 / (np.array(SPANS) + 1), channels)
    windows = shown.repeat(len(SPANS), axis=2)
    average = np.full((len(shown), windows.shape[2]), 0.5)
    first = 1 + 2 * channels
    for t in range(WINDOWS):
        average += weight * (windows[:, t] - average)
        states[:, t, first : first + average.shape[1]] = average


def _g1() -> Oracle:
    rewards = np.zeros((WINDOWS, 2, ACTION_COUNT))
    rewards[:, 1, Action.CONTINUE_MONITORING] = -0.1
    rewards[:, :, Action.INCREASE_ISOLATION] = -0.05, -0.03
    rewards[:, :, Action.TERMINATE_PROCESS] = -8.0, 0.0
    rewards[:, :, Action.QUARANTINE_FILE] = -3.0, -0.3
    rewards[:, :, Action.REQUEST_HUMAN_REVIEW] = -0.9, -0.9 - 0.3
    return Oracle(
        name="g1",
        families=("benign", "malicious"),
        prior=np.array([0.7, 0.3]),
        p_up=np.array([[0.35], [0.65]]),
        rewards=rewards,
    )


def _g2() -> Oracle:
    damage = np.zeros((WINDOWS + 2, 3))  # no damage after the end
    damage[:WINDOWS, 1] = np.where(np.arange(WINDOWS) < 20, 0.02, 0.4)
    damage[:WINDOWS, 2] = 0.06
    pending = damage[:-2] + damage[1:-1] + damage[2:]
    damage = damage[:WINDOWS]
    rewards = np.zeros((WINDOWS, 3, ACTION_COUNT))
    rewards[:, :, Action.CONTINUE_MONITORING] = -damage
    rewards[:, :, Action.INCREASE_ISOLATION] = -damage * (0.0, 0.9, 0.05) - (0.05, 0.0, 0.0)
    rewards[:, :, Action.TERMINATE_PROCESS] = -8.0, 0.0, -1.0
    rewards[:, :, Action.QUARANTINE_FILE] = -3.0, -1.0, -0.1
    rewards[:, :, Action.REQUEST_HUMAN_REVIEW] = -0.9 - pending
    return Oracle(
        name="g2",
        families=("benign", "a", "b"),
        prior=np.array([0.70, 0.15, 0.15]),
        p_up=np.array([[0.38, 0.5], [0.62, 0.64], [0.62, 0.36]]),
        rewards=rewards,
    )


G1 = _g1()
"""30 % malicious; one channel, up with 0.65 in malicious windows and 0.35 in benign ones. A
sequential probability ratio test is optimal: which action is best depends on the posterior alone,
in bands. Monitoring costs 0.1 a malicious window; isolating 0.03 malicious and 0.05 benign;
terminating 8 if benign; quarantining 3 if benign, 0.3 if malicious; review 0.9, and 0.3 more if
malicious. Optimum -0.4384; always-monitor's regret is 0.7466 (0.734 was estimated by simulation:
there the share of malicious trajectories alone has a standard error of 0.013 at 20,000)."""

G2 = _g2()
"""Benign 0.70, A 0.15, B 0.15. Channel 1 tells benign (0.38 up) from malicious (0.62), channel 2
tells A (0.64) from B (0.36; benign 0.5). Damage is delayed: A does 0.02 in each of the first 20
windows, then 0.4; B 0.06. Isolating leaves A 0.9 and B 0.05 of its damage and costs benign 0.05.
Terminating costs benign 8, B 1; quarantining benign 3, A 1, B 0.1; review 0.9 and the damage of
this window and the next two, undiscounted, as far as the trajectory lasts. Optimum -0.4394;
always-monitor's regret 1.2482, always-review's 0.4966 (estimated by simulation as 0.49)."""
