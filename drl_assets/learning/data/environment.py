"""Replay environments over recorded episodes: in lockstep for evaluation, Gymnasium for agents.

Until it is contained an artefact hardly depends on us, so a recording shows what the next window
would have been, whichever action is taken; isolation alone changes what is observed (see
`episodes.isolated`). Rewards are those of `drl_core.policy.reward.hindsight`, looked up, never
computed anew.
"""

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from drl_assets.learning.data.episodes import LEVEL, Bools, Episodes, Floats, Ints, isolated
from drl_core.policy import features, reward
from drl_core.policy.actions import ACTION_COUNT, MAX_ISOLATION_LEVEL, TERMINAL, Action, allowed
from drl_core.policy.reward import CostTable

Rewards = npt.NDArray[np.float64]


class LockstepReplay:
    """Many episodes advanced together, each at its own isolation level.

    Attributes:
        active: [A] the episodes that still run.
        windows: [A, 14] what is observed now, under the present isolation.
        carry: [A, 14] of the windows before this one.
        features: float64 [A, 30] of the present window.
    """

    def __init__(self, episodes: Episodes, costs: CostTable = reward.DEFAULT_COSTS) -> None:
        self.episodes = episodes
        self.costs = costs
        self._next_damage = episodes.next_damage
        self.reset(np.arange(len(episodes)))

    def reset(self, chosen: Ints) -> None:
        """Start the chosen episodes at their first window."""
        self.active = chosen
        self.time = 0
        self._level = np.zeros(len(chosen), dtype=np.int64)
        self._observe(self.episodes.carry[chosen])

    @property
    def rows(self) -> Ints:
        """The row in `episodes` of each active episode's present window, [A]."""
        return self.episodes.offsets[self.active] + self.time

    @property
    def level(self) -> Ints:
        """Isolation level in force, the recording's own included, [A]."""
        return self.windows[:, LEVEL].astype(np.int64)

    def step(self, actions: Ints) -> tuple[Rewards, Bools, Bools]:
        """Take an action in each active episode and go on to the next window.

        Args:
            actions: [A], each allowed at the episode's level.

        Returns:
            rewards [A], terminated [A] (by the action or the artefact's own end), truncated [A]
            (the record ends). Finished episodes leave `active`.

        Raises:
            ValueError: an action that is masked at its isolation level.
        """
        if not allowed(self.level)[np.arange(len(actions)), actions].all():
            raise ValueError("increase_isolation is masked at isolation level 3")
        episodes = self.episodes
        table = reward.hindsight(
            self._next_damage[self.rows], episodes.malicious[self.active], self.level, self.costs
        )
        rewards = table[np.arange(len(actions)), actions]
        at_end = self.rows == episodes.offsets[self.active + 1] - 1
        terminated = np.isin(actions, TERMINAL) | (at_end & episodes.ended[self.active])
        truncated = at_end & ~terminated
        raised = np.minimum(self.level + 1, MAX_ISOLATION_LEVEL)
        level = np.where(actions == Action.INCREASE_ISOLATION, raised, self.level)
        on = ~(terminated | truncated)
        self.active, self._level, self.time = self.active[on], level[on], self.time + 1
        self._observe(self._carry_after[on])
        return rewards, terminated, truncated

    def _observe(self, carry: Floats) -> None:
        self.carry = carry
        self.windows = isolated(self.episodes.windows[self.rows], self._level)
        self.features, self._carry_after = features.step(np, self.windows, carry)


class ContainmentEnv(gymnasium.Env[npt.NDArray[np.float32], np.int64]):
    """Gymnasium environment over recorded episodes; each reset draws one uniformly.

    Observation: the 30 features, float32. Action: one of five. A masked action (isolating at level
    3) has no effect beyond continuing, so that agents without masks can train here; `info` holds
    `action_mask`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own form

    def __init__(self, episodes: Episodes, costs: CostTable = reward.DEFAULT_COSTS) -> None:
        if not len(episodes):
            raise ValueError("no labelled episode to replay")
        self.observation_space = spaces.Box(0.0, 1.0, (features.FEATURE_COUNT,), np.float32)
        self.action_space = spaces.Discrete(ACTION_COUNT)
        self._replay = LockstepReplay(episodes, costs)
        self._last = np.zeros(features.FEATURE_COUNT, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode; `options={"episode": i}` names it, else it is drawn."""
        super().reset(seed=seed)
        count = len(self._replay.episodes)
        index = (options or {}).get("episode", self.np_random.integers(count))
        self._replay.reset(np.asarray([index]))
        return self._observation(), self._info()

    def step(
        self, action: np.int64
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take an action; see `LockstepReplay.step`."""
        masked = not allowed(self._replay.level)[0, action]
        taken = Action.CONTINUE_MONITORING if masked else action
        rewards, terminated, truncated = self._replay.step(np.asarray([taken]))
        return (
            self._observation(),
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            self._info(),
        )

    def _observation(self) -> npt.NDArray[np.float32]:
        if len(self._replay.active):
            self._last = self._replay.features[0].astype(np.float32)
        return self._last.copy()

    def _info(self) -> dict[str, Any]:
        level = self._replay.level
        return {"action_mask": allowed(level)[0] if len(level) else np.ones(ACTION_COUNT, bool)}
