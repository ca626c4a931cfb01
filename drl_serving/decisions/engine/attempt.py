"""One attempt at a request's events: everything that deciding them would change, kept aside."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from drl_core.policy.features import CARRY_WIDTH, Array
from drl_core.telemetry.event import Event
from drl_serving.decisions.engine.action_selection import Rules
from drl_serving.decisions.engine.scoring import Caller, Made, Models, Step, role_of, score
from drl_serving.decisions.engine.step_order import check_step, order
from drl_serving.decisions.schemas import Decision, Role
from drl_serving.decisions.state.episode_store import Episode, EpisodeKey
from drl_serving.http.problems import Problem
from drl_serving.models.onnx_model import ServedModel

ROLES: tuple[Role, Role] = ("champion", "challenger")
START = np.zeros(CARRY_WIDTH)
"""The carry before an episode's first window."""
pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder(Decision).decode


@dataclass(slots=True)
class Attempt:
    """One attempt at a request: everything that it would change, kept aside."""

    rules: Rules
    caller: Caller
    models: Models
    names: dict[EpisodeKey, bytes] = field(default_factory=dict)
    episodes: dict[EpisodeKey, Episode] = field(default_factory=dict)
    changed: set[EpisodeKey] = field(default_factory=set)
    decisions: dict[tuple[str, str, int], Decision] = field(default_factory=dict)
    made: list[Made] = field(default_factory=list)
    compute_s: float = 0.0
    """That the models took."""

    def take(self, key: EpisodeKey, name: bytes, episode: Episode | None, first: Event) -> None:
        """Begin from what is known of an episode, of which `first` is the request's first event."""
        self.names[key] = name
        if episode is None or not goes_on(episode, first, self.models.champion):
            return
        self.episodes[key] = episode
        if episode.decision is not None:
            self.decisions[*key, episode.step] = unpack(episode.decision)

    def decide(self, events: Sequence[Event]) -> None:
        """Decide all events, one step of every episode at a time."""
        queues = order(events, {key: self.episodes.get(key) for key in self.names})
        while queues := {key: queue for key, queue in queues.items() if queue}:
            for role in ROLES:
                keys = [key for key in queues if self.role(key) == role]
                heads = [(key, queues[key].popleft()) for key in keys]
                steps = [
                    Step(self.names[key], event, self._carry(key, event), self.caller)
                    for key, event in heads
                ]
                for key, made in zip(keys, self.score(steps, role), strict=True):
                    self.changed.add(key)
                    self.decisions[*key, made.decision.step] = made.decision
                    self.episodes[key] = episode_after(made)

    def role(self, key: EpisodeKey) -> Role:
        """Which model decides an episode."""
        return role_of(self.names[key], self.models, self.rules)

    def score(self, steps: Sequence[Step], role: Role) -> list[Made]:
        """Decide one step of each of N episodes.

        Raises:
            Problem: 500 for numbers that are not finite.
        """
        if not steps:
            return []
        began = time.perf_counter()
        scored = score(steps, self.models.of(role), role, self.rules)
        self.compute_s += time.perf_counter() - began
        for one in scored:
            if isinstance(one, Problem):
                raise one
            self.made.append(one)
        return self.made[-len(steps) :]

    def _carry(self, key: EpisodeKey, event: Event) -> Array:
        episode = self.episodes.get(key)
        if episode is None:
            return START
        return episode.carry() if event.step > episode.step else episode.carry_before()


def episode_after(made: Made) -> Episode:
    """Where an episode stands after a step was decided."""
    decision = made.decision
    return Episode(
        decision.step,
        decision.features_version,
        made.step.before.tobytes(),
        made.after.tobytes(),
        pack(decision),
    )


def goes_on(episode: Episode, event: Event, model: ServedModel) -> bool:
    """Whether an event goes on from a kept episode; otherwise the episode is as good as not known.

    One that was folded by other features cannot; one that came back from telemetry and has no
    decision yet may be begun again from its step 0.
    """
    if episode.features_version != model.manifest.features_version:
        return False
    return episode.decision is not None or event.step > 0


def take_up(event: Event, episode: Episode | None, model: ServedModel) -> Array | Decision:
    """Where a step goes on from: the carry before it, float64 [14].

    Returns:
        The decision instead, where it is the episode's last step, sent again.

    Raises:
        Problem: 409 for a step that is not the next one or the last one.
    """
    if episode is not None and not goes_on(episode, event, model):
        episode = None
    check_step(event, 0, episode.step if episode else -1)
    if episode is None:
        return START
    if event.step > episode.step:
        return episode.carry()
    return episode.carry_before() if episode.decision is None else unpack(episode.decision)
