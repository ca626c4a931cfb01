"""Shadow deployment: what the model that does not decide would have done, counted.

Decided windows are offered on the way; they are scored together, now and then, in a thread, so a
challenger costs a decision nothing. What is offered beyond the buffer is left out and counted.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from drl_core.policy.actions import Action
from drl_core.policy.features import Array
from drl_serving.decisions.engine.action_selection import Rules, select_actions
from drl_serving.models.onnx_model import ServedModel
from drl_serving.models.schemas import Role

INTERVAL_S = 0.2
CAPACITY = 20_000

Compared = Callable[[str, str, str, int], None]
"""Told how often the action of a role met which action of the other."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One decided window."""

    window: Array
    carry: Array
    isolation_level: int
    action: Action
    role: Role
    """Of the model that decided."""
    other: ServedModel
    """The model to compare it with."""


class Shadow:
    """Compares decisions with those of the other model.

    Args:
        compared: called for each pair of actions with a count.
        skipped: called with the number of offers that were left out.
    """

    def __init__(self, compared: Compared, skipped: Callable[[int], None]) -> None:
        self._offers: deque[Offer] = deque(maxlen=CAPACITY)
        self._compared = compared
        self._skipped = skipped
        self.rules = Rules()

    def offer(self, offer: Offer) -> None:
        """Take a decided window for comparison."""
        if len(self._offers) == CAPACITY:
            self._skipped(1)
        self._offers.append(offer)

    async def watch(self) -> None:
        """Compare what was offered, periodically until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            if self._offers:
                await self.compare()

    async def compare(self) -> None:
        """Compare what was offered so far."""
        offers = [self._offers.popleft() for _ in range(len(self._offers))]
        pairs = await asyncio.to_thread(_pairs, offers, self.rules.containment_margin)
        for (role, action, other), count in pairs.items():
            self._compared(role, action.label, other.label, count)


def _pairs(offers: list[Offer], margin: float) -> Counter[tuple[Role, Action, Action]]:
    pairs: Counter[tuple[Role, Action, Action]] = Counter()
    by_model: dict[int, list[Offer]] = {}
    for offer in offers:
        by_model.setdefault(id(offer.other), []).append(offer)
    for group in by_model.values():
        scores = group[0].other.run(
            np.stack([offer.window for offer in group]), np.stack([offer.carry for offer in group])
        )
        levels = np.array([offer.isolation_level for offer in group])
        actions = select_actions(scores.q_values, levels, margin)
        for offer, action in zip(group, actions.tolist(), strict=True):
            pairs[offer.role, offer.action, Action(action)] += 1
    return pairs
