"""Decides events: orders them against what is known of their episodes, scores, picks an action.

Validated events come in, one decision an event goes out. A list is decided whole or not at all:
every event's place is checked first, scores are computed on the side, and only then is anything
kept. Where another worker moved an episode on meanwhile, the whole is done again from there.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from drl_core.actions import Action
from drl_core.features import Array, window
from drl_core.telemetry import Event
from drl_serving.decisions.attempt import (
    ANYBODY,
    ROLES,
    START,
    Attempt,
    Caller,
    Models,
    goes_on,
    make_decision,
    make_entry,
    not_finite,
    pack,
    role_of,
    unpack,
)
from drl_serving.decisions.episodes import Episode, EpisodeStore, database_key
from drl_serving.decisions.journal import packed
from drl_serving.decisions.ordering import check_step, episode_key
from drl_serving.decisions.rules import Rules
from drl_serving.decisions.schemas import Decision
from drl_serving.decisions.shadow import Offer, Shadow
from drl_serving.metrics import Metrics
from drl_serving.problems import Problem

_ATTEMPTS = 100


@dataclass(frozen=True)
class Decided:
    """The answers to a list of events."""

    answers: list[Decision]
    """One an event; a redelivered step has the decision that it had before."""
    new: list[Decision]
    """Those that were made just now."""


class DecisionService:
    """Decides with whichever models it is handed; what is known of episodes is in the store."""

    def __init__(
        self,
        episodes: EpisodeStore,
        rules: Rules,
        metrics: Metrics | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        self.episodes = episodes
        self.rules = rules
        """May be replaced while running."""
        self._metrics = metrics
        self._shadow = shadow

    def decide(self, events: Sequence[Event], models: Models, caller: Caller = ANYBODY) -> Decided:
        """Decide events in their order; several episodes may be mixed. Safe in any thread.

        Raises:
            Problem: 409 for a step that is not an episode's next or last one, 500 for numbers
                that are not finite. Nothing is kept of any event then.
        """
        first = {episode_key(event): event for event in reversed(events)}
        names = {key: database_key(key) for key in dict.fromkeys(map(episode_key, events))}
        for _ in range(_ATTEMPTS):
            known = self.episodes.read(names.values())
            work = Attempt(self.rules, caller, models)
            for key, name in names.items():
                found = known[name]
                work.take(key, name, found.episode if found else None, first[key])
            work.decide(events)
            # in the order of last use, so that the episode named last is evicted last
            recent = list(dict.fromkeys(episode_key(event) for event in reversed(events)))
            changed = {
                names[key]: work.episodes[key] for key in reversed(recent) if key in work.changed
            }
            entries = [packed(entry) for entry in work.entries]
            if not changed or self.episodes.commit(known, changed, entries):
                self._tell(work, models)
                decisions = work.decisions
                answers = [decisions[event.key] for event in events]
                return Decided(answers, [entry.decision for entry in work.entries])
        raise _busy()

    def decide_one(self, event: Event, models: Models, caller: Caller = ANYBODY) -> Decision:
        """`decide` for one event, at less than half the cost; on the event loop's thread only.

        Raises:
            Problem: as `decide`.
        """
        key = episode_key(event)
        name = database_key(key)
        rules = self.rules
        role = role_of(name, models, rules)
        model = models.of(role)
        for _ in range(_ATTEMPTS):
            found = self.episodes.read((name,))[name]
            episode = found.episode if found else None
            if episode and not goes_on(episode, event, model):
                episode = None
            last = episode.step if episode else -1
            check_step(event, 0, last)
            if episode is None:
                before = START
            elif event.step > last:
                before = episode.carry()
            elif episode.decision is None:
                before = episode.carry_before()
            else:
                return unpack(episode.decision)
            row = window(event)
            began = time.perf_counter()
            q_values, after = model.run_one(row, before)
            compute_s = time.perf_counter() - began
            if not isfinite(sum(after.tolist())):
                raise not_finite()
            decision = make_decision(event, q_values, model, role, rules)
            entry = make_entry(name, event, decision, rules, caller, row, before)
            changed = Episode(
                event.step,
                decision.features_version,
                before.tobytes(),
                after.tobytes(),
                pack(decision),
            )
            if self.episodes.commit_one(name, found, changed, packed(entry)):
                self._tell_one(row, before, decision, models)
                if self._metrics is not None:
                    self._metrics.compute_seconds.observe(compute_s)
                return decision
        raise _busy()

    def decide_carried(
        self, events: Sequence[Event], carries: Array, models: Models, caller: Caller = ANYBODY
    ) -> list[tuple[Decision, list[float]]]:
        """Decide events whose histories the caller has; nothing is kept but the journal.

        Args:
            events: any, each by itself.
            carries: float64 [N, 14], each of the steps before its event.
            models: of this request.
            caller: for the journal.
        """
        work = Attempt(self.rules, caller, models)
        batch = [(episode_key(e), e, carry) for e, carry in zip(events, carries, strict=True)]
        work.names = {key: database_key(key) for key, _, _ in batch}
        decided: dict[int, tuple[Decision, list[float]]] = {}
        for role in ROLES:
            mine = [place for place, (key, _, _) in enumerate(batch) if work.role(key) == role]
            scored = work.score([batch[place] for place in mine], role)
            decided |= {
                p: (made, after.tolist()) for p, (made, after) in zip(mine, scored, strict=True)
            }
        self.episodes.commit({}, {}, [packed(entry) for entry in work.entries])
        self._tell(work, models)
        return [decided[place] for place in range(len(batch))]

    def _tell(self, work: Attempt, models: Models) -> None:
        """Count what was decided, and hand it on for the model that did not decide it."""
        for (row, carry), entry in zip(work.inputs, work.entries, strict=True):
            self._tell_one(row, carry, entry.decision, models)
        if self._metrics is not None and work.compute_s:
            self._metrics.compute_seconds.observe(work.compute_s)

    def _tell_one(self, row: Array, carry: Array, made: Decision, models: Models) -> None:
        if self._metrics is not None:
            self._metrics.actions.labels(made.action_name, made.mode, made.role).inc()
            self._metrics.observe_window(row)
        if self._shadow is not None and models.challenger is not None:
            other = models.challenger if made.role == "champion" else models.champion
            self._shadow.offer(
                Offer(row, carry, made.isolation_level, Action(made.action), made.role, other)
            )


def _busy() -> Problem:
    return Problem(
        503,
        "episode-busy",
        "the episode is decided by too many requests at once",
        "Send an episode's steps one after another.",
        retry_after_s=1,
    )
