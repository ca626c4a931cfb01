"""Decides events: orders them against what is known of their episodes, scores, picks an action.

Validated events come in, one decision an event goes out. A list is decided whole or not at all:
every event's place is checked first, scores are computed on the side, and only then is anything
kept. Where another worker moved an episode on meanwhile, the whole is done again from there.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drl_core.policy.actions import Action
from drl_core.policy.features import Array
from drl_core.telemetry.event import Event
from drl_serving.decisions.engine.action_selection import Rules
from drl_serving.decisions.engine.attempt import ROLES, Attempt, episode_after, take_up
from drl_serving.decisions.engine.scoring import (
    ANYBODY,
    Caller,
    Made,
    Models,
    Step,
    journal_entry,
    role_of,
    score,
)
from drl_serving.decisions.engine.shadow import Offer, Shadow
from drl_serving.decisions.engine.step_order import episode_key
from drl_serving.decisions.schemas import Decision, Role
from drl_serving.decisions.state.episode_store import EpisodeStore, database_key
from drl_serving.decisions.state.journal import packed
from drl_serving.http.problems import Problem
from drl_serving.observability.metrics import Metrics

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
            if not changed or self.episodes.commit(known, changed, self._entries(work)):
                self._tell(work)
                answers = [work.decisions[event.key] for event in events]
                return Decided(answers, [one.decision for one in work.made])
        raise _busy()

    def decide_each(
        self, requests: Sequence[tuple[Event, Caller]], models: Models
    ) -> list[Decision | Problem]:
        """Decide single events of many requests as one batch; each may fail by itself.

        Returns:
            One outcome a request: its decision, or the problem that `decide` would raise.
        """
        names = [database_key(episode_key(event)) for event, _ in requests]
        outcomes: dict[int, Decision | Problem] = {}
        waiting = list(range(len(requests)))
        for _ in range(_ATTEMPTS + len(requests)):
            turn: dict[bytes, int] = {}  # one step of each episode at a time
            for place in waiting:
                turn.setdefault(names[place], place)
            decided = self._decide_turn({n: requests[place] for n, place in turn.items()}, models)
            outcomes |= {turn[name]: outcome for name, outcome in decided.items()}
            waiting = [place for place in waiting if place not in outcomes]
            if not waiting:
                break
        return [outcomes.get(place) or _busy() for place in range(len(requests))]

    def _decide_turn(
        self, turn: Mapping[bytes, tuple[Event, Caller]], models: Models
    ) -> dict[bytes, Decision | Problem]:
        """Decide one step of each episode; those that went on elsewhere meanwhile are left out."""
        rules, known = self.rules, self.episodes.read(turn)
        outcomes: dict[bytes, Decision | Problem] = {}
        steps: dict[Role, list[Step]] = {role: [] for role in ROLES}
        for name, (event, caller) in turn.items():
            found, role = known[name], role_of(name, models, rules)
            try:
                before = take_up(event, found.episode if found else None, models.of(role))
            except Problem as problem:
                outcomes[name] = problem
            else:
                if isinstance(before, Decision):
                    outcomes[name] = before
                else:
                    steps[role].append(Step(name, event, before, caller))
        made: dict[bytes, Made] = {}
        for role, batch in steps.items():
            for step, one in zip(batch, self._score(batch, role, models, rules), strict=True):
                if isinstance(one, Problem):
                    outcomes[step.name] = one
                else:
                    made[step.name] = one
        changed = {
            name: (episode_after(one), packed(journal_entry(one, rules)))
            for name, one in made.items()
        }
        for name in self.episodes.commit_each(known, changed):
            outcomes[name] = made[name].decision
            self._tell_one(made[name], models)
        return outcomes

    def _score(
        self, steps: Sequence[Step], role: Role, models: Models, rules: Rules
    ) -> list[Made | Problem]:
        if not steps:
            return []
        began = time.perf_counter()
        scored = score(steps, models.of(role), role, rules)
        if self._metrics is not None:
            self._metrics.compute_seconds.observe(time.perf_counter() - began)
        return scored

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
        names = [database_key(episode_key(event)) for event in events]
        steps = [
            Step(name, event, carry, caller)
            for name, event, carry in zip(names, events, carries, strict=True)
        ]
        decided: dict[int, tuple[Decision, list[float]]] = {}
        for role in ROLES:
            mine = [n for n, name in enumerate(names) if role_of(name, models, self.rules) == role]
            made = work.score([steps[place] for place in mine], role)
            decided |= {
                place: (one.decision, one.after.tolist())
                for place, one in zip(mine, made, strict=True)
            }
        self.episodes.commit({}, {}, self._entries(work))
        self._tell(work)
        return [decided[place] for place in range(len(events))]

    def _entries(self, work: Attempt) -> list[bytes]:
        return [packed(journal_entry(one, work.rules)) for one in work.made]

    def _tell(self, work: Attempt) -> None:
        """Count what was decided, and hand it on for the model that did not decide it."""
        for made in work.made:
            self._tell_one(made, work.models)
        if self._metrics is not None and work.compute_s:
            self._metrics.compute_seconds.observe(work.compute_s)

    def _tell_one(self, made: Made, models: Models) -> None:
        decision = made.decision
        if self._metrics is not None:
            self._metrics.actions.labels(decision.action_name, decision.mode, decision.role).inc()
            self._metrics.observe_window(made.window)
        if self._shadow is not None and models.challenger is not None:
            other = models.challenger if decision.role == "champion" else models.champion
            level, action = decision.isolation_level, Action(decision.action)
            self._shadow.offer(
                Offer(made.window, made.step.before, level, action, decision.role, other)
            )


def _busy() -> Problem:
    return Problem(
        503,
        "episode-busy",
        "the episode is decided by too many requests at once",
        "Send an episode's steps one after another.",
        retry_after_s=1,
    )
