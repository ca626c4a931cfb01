"""The carry of each running episode, kept in memory, the least recently used evicted first."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from drl_core.features import Array
from drl_serving.decisions.schemas import Decision

EpisodeKey = tuple[str, str]
"""(sandbox_id, episode_id)"""


@dataclass(frozen=True, slots=True)
class Episode:
    """Where an episode stands: its last decision and the carry that includes that window."""

    decision: Decision
    carry: Array
    """float64 [14]"""

    @property
    def step(self) -> int:
        """The last step decided."""
        return self.decision.step


class EpisodeStore:
    """At most `capacity` episodes; each kept one is the fold of its steps 0..step, none missing.

    An evicted episode is forgotten whole, so nothing is ever decided from part of a history.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._episodes: OrderedDict[EpisodeKey, Episode] = OrderedDict()

    def __len__(self) -> int:
        return len(self._episodes)

    def get(self, key: EpisodeKey) -> Episode | None:
        """The episode, or None where it is new or was evicted."""
        return self._episodes.get(key)

    def put(self, episodes: Iterable[tuple[EpisodeKey, Episode]]) -> None:
        """Take episodes that went on, as the most recently used."""
        for key, episode in episodes:
            self._episodes[key] = episode
            self._episodes.move_to_end(key)
        while len(self._episodes) > self._capacity:
            self._episodes.popitem(last=False)
