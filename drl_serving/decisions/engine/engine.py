"""The decision engine: dynamic batching of requests, events in, one decision an event out.

A request is a group of events that is decided whole or not at all: a single event is a group of
one, a list a group of many, and carried histories are a group that leaves no episode behind. All
take one path. The requests that came in during one turn of the event loop are one batch: their
episodes are read, each event's place in its episode is checked, the next step of every episode is
scored in one run of the model, round after round, and the episodes are committed in one transaction
with optimistic concurrency: scoring holds no lock, and a request of which another worker moved an
episode on meanwhile is decided again from there.
"""

import asyncio
import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isnan
from operator import attrgetter

import numpy as np

from drl_core.policy.actions import Action
from drl_core.policy.features import CARRY_WIDTH, Array, windows_of
from drl_core.release.manifest import Manifest
from drl_core.telemetry.event import Event
from drl_serving.decisions.engine.action_selection import (
    LABELS,
    Rules,
    explain,
    in_share,
    mask,
    select,
)
from drl_serving.decisions.engine.requests import Caller, Decided, DecisionRequest, ScoredStep
from drl_serving.decisions.engine.shadow import Offer, Shadow
from drl_serving.decisions.engine.step_order import episode_busy, step_conflict
from drl_serving.decisions.schemas import Decision, JournalEntry
from drl_serving.decisions.state.episode_store import (
    Change,
    Episode,
    EpisodeSnapshot,
    EpisodeStore,
    database_key,
    episode_key,
    pack_entry,
)
from drl_serving.http.problems import Problem
from drl_serving.models.holder import ModelHolder
from drl_serving.models.onnx_model import Models, ServedModel, not_finite, unsound_rows
from drl_serving.models.schemas import Role
from drl_serving.models.service import no_model
from drl_serving.observability.metrics import Metrics

_ROLES: tuple[Role, Role] = ("champion", "challenger")
INLINE = 16
"""Events of one request that are decided on the event loop; more of them go to a thread."""
_ATTEMPTS = 100
_START = np.zeros(CARRY_WIDTH)
"""The carry before an episode's first window."""
_FREE = ~(0xF << 76 | 0x3 << 62)
_VERSION_4 = 0x4 << 76 | 0x2 << 62
_last_named = attrgetter("named")
_bits = random.getrandbits  # seeded by the system, anew in each forked worker


class _EpisodeSteps:
    """The steps of one episode that a request asks for, and where they continue from."""

    __slots__ = ("carry", "last", "name", "named", "role", "to_score")

    def __init__(self, name: bytes, role: Role, last: int, carry: Array) -> None:
        self.name = name
        self.role: Role = role
        self.last = last
        """The last step that has a decision, or will have one; -1 for an unknown episode."""
        self.carry = carry
        """Before the next step to score."""
        self.to_score: list[int] = []
        """Places of the events that have no decision yet, in order."""
        self.named = 0
        """Place of the last event that names the episode."""


class _WorkingSet:
    """Everything that deciding a request would change, kept aside until it is committed."""

    __slots__ = ("earlier", "episodes", "names", "problem", "request", "scored", "stored")

    def __init__(self, request: DecisionRequest) -> None:
        self.request = request
        self.names = [database_key(episode_key(event)) for event in request.events]
        self.stored = self.names if request.carries is None else []
        """The episodes that are read from the store and continue in it."""
        self.problem: Problem | None = None

    def plan(
        self, read: Mapping[bytes, EpisodeSnapshot | None], models: Models, rules: Rules
    ) -> Collection[_EpisodeSteps]:
        """Put the events in the order of their episodes' steps; an attempt before is forgotten.

        Raises:
            Problem: 409 for a step that is not its episode's next or last one.
        """
        self.scored: dict[int, ScoredStep] = {}
        self.earlier: dict[int, Decision | int] = {}
        """Redelivered events: their decision, or the place of the event that they repeat."""
        if self.request.carries is not None:
            self.episodes = self._plan_carried(self.request.carries, models, rules)
            return self.episodes
        known: dict[bytes, _EpisodeSteps] = {}
        self.episodes = known.values()
        for place, event in enumerate(self.request.events):
            name, step = self.names[place], event.step
            episode = known.get(name)
            if episode is None:
                role = rules.role_of(name, models)
                features = models.of(role).manifest.features_version
                episode = known[name] = _resume(name, role, read[name], step, features)
            episode.named = place
            if step == episode.last + 1:
                episode.to_score.append(place)
                episode.last = step
            elif step != episode.last or step < 0:
                raise step_conflict(event, place, episode.last)
            elif episode.to_score:
                self.earlier[place] = episode.to_score[-1]
            elif found := read[name]:
                self.earlier[place] = found.episode.made()
        return self.episodes

    def _plan_carried(
        self, carries: Array, models: Models, rules: Rules
    ) -> Collection[_EpisodeSteps]:
        episodes = []
        for place, (name, carry) in enumerate(zip(self.names, carries, strict=True)):
            episode = _EpisodeSteps(name, rules.role_of(name, models), -1, carry)
            episode.to_score.append(place)
            episodes.append(episode)
        return episodes

    def change(self, rules: Rules) -> Change:
        """What is to be kept; the episode that the request names last is evicted last."""
        moved = {}
        if self.stored:
            for episode in sorted(self.episodes, key=_last_named):
                if episode.to_score:
                    last = self.scored[episode.to_score[-1]]
                    moved[episode.name] = Episode.of(last.decision, last.before, last.after)
        caller = self.request.caller
        return Change(moved, [_journal_entry(one, caller, rules) for one in self.scored.values()])

    def outcome(self) -> Decided:
        """The request's answers."""
        places = range(len(self.names))
        if not self.earlier:
            return Decided([self.scored[place].decision for place in places], self.scored)
        sources = [self.earlier.get(place, place) for place in places]
        answers = [self.scored[one].decision if isinstance(one, int) else one for one in sources]
        return Decided(answers, self.scored)


def _resume(
    name: bytes, role: Role, found: EpisodeSnapshot | None, step: int, features_version: int
) -> _EpisodeSteps:
    """Where an episode continues whose first step in a request is `step`."""
    if found is None or not found.episode.continues(step, features_version):
        return _EpisodeSteps(name, role, -1, _START)
    kept = found.episode
    if kept.decision is None and step == kept.step:  # restored: its decision is made now
        return _EpisodeSteps(name, role, step - 1, kept.carry_before())
    return _EpisodeSteps(name, role, kept.step, kept.carry())


_Step = tuple[_WorkingSet, _EpisodeSteps]


class DecisionEngine:
    """Decides with the models and the rules of the moment; episodes are in the shared store."""

    def __init__(
        self,
        episodes: EpisodeStore,
        models: ModelHolder,
        rules: Rules,
        metrics: Metrics,
        shadow: Shadow,
    ) -> None:
        self.episodes = episodes
        self.rules = rules
        """May be replaced while running."""
        self._models = models
        self._metrics = metrics
        self._shadow = shadow
        self._waiting: list[tuple[_WorkingSet, asyncio.Future[Decided]]] = []

    def models(self) -> Models:
        """The models that decide now.

        Raises:
            Problem: 503 while there is none.
        """
        serving = self._models.serving
        if serving is None:
            raise no_model()
        return serving

    def submit(self, request: DecisionRequest) -> asyncio.Future[Decided]:
        """Decide a request in the batch of this turn of the event loop, a long one in a thread.

        Nobody waits for others to come: the turn ends when nothing else is ready.

        Raises (when awaited):
            Problem: 409 for a step that is not its episode's next or last one, 500 for numbers that
                are not finite, 503 without a model. Nothing is kept of any of its events then.
        """
        if len(request.events) > INLINE:
            return asyncio.ensure_future(asyncio.to_thread(self.decide_now, request))
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._end_turn)
        future: asyncio.Future[Decided] = loop.create_future()
        self._waiting.append((_WorkingSet(request), future))
        return future

    def decide_now(self, request: DecisionRequest) -> Decided:
        """Decide a request as a batch of its own. Safe in any thread; raises as `submit`."""
        work = _WorkingSet(request)
        self._decide_batch([work], self.models())
        if work.problem is not None:
            raise work.problem
        return work.outcome()

    def _end_turn(self) -> None:
        waiting = [one for one in self._waiting if not one[1].done()]  # some were cancelled
        self._waiting = []
        try:
            self._decide_batch([work for work, _ in waiting], self.models())
        except Exception as error:  # everyone who waits gets it
            for _, future in waiting:
                future.set_exception(error)
            return
        for work, future in waiting:
            if work.problem is not None:
                future.set_exception(work.problem)
            else:
                future.set_result(work.outcome())

    def _decide_batch(self, batch: Sequence[_WorkingSet], models: Models) -> None:
        """Decide requests as if one after another, each with its own outcome.

        Requests that name the same episode are decided in turns, in the order in which they came.
        """
        waiting = batch
        for _ in range(_ATTEMPTS + len(batch)):
            turn: list[_WorkingSet] = []
            later: list[_WorkingSet] = []
            named: set[bytes] = set()
            for work in waiting:
                (turn if named.isdisjoint(work.stored) else later).append(work)
                named.update(work.stored)
            waiting = [*self._decide_turn(turn, models), *later]
            if not waiting:
                return
        for work in waiting:
            work.problem = episode_busy()

    def _decide_turn(self, turn: Sequence[_WorkingSet], models: Models) -> list[_WorkingSet]:
        """Decide requests that share no episode.

        Returns:
            Those of which another worker moved an episode on meanwhile, to be decided again.
        """
        rules = self.rules
        read = self.episodes.read([name for work in turn for name in work.stored])
        steps: list[_Step] = []
        for work in turn:
            try:
                planned = work.plan(read, models, rules)
                steps += [(work, one) for one in planned if one.to_score]
            except Problem as problem:
                work.problem = problem
        self._score_rounds(steps, models, rules)
        sound = [work for work in turn if work.problem is None]
        kept = self.episodes.commit(read, [work.change(rules) for work in sound])
        again = []
        for work, is_kept in zip(sound, kept, strict=True):
            if is_kept:
                self._record(work.scored.values(), models)
            else:
                again.append(work)
        return again

    def _score_rounds(self, steps: Sequence[_Step], models: Models, rules: Rules) -> None:
        """Score one step of every episode at a time, until all events have their decisions."""
        number = 0
        while steps:
            if models.challenger is None:
                self._score(steps, number, models.champion, "champion", rules)
            else:
                for role in _ROLES:
                    if batch := [pair for pair in steps if pair[1].role == role]:
                        self._score(batch, number, models.of(role), role, rules)
            number += 1
            steps = [
                (work, one)
                for work, one in steps
                if len(one.to_score) > number and work.problem is None
            ]

    def _score(
        self,
        batch: Sequence[_Step],
        number: int,
        model: ServedModel,
        role: Role,
        rules: Rules,
    ) -> None:
        """Score the next step of each of N episodes in one run of the model.

        It fails closed: a request with a number that is not finite gets a 500.
        """
        events = [work.request.events[one.to_score[number]] for work, one in batch]
        windows = windows_of(events)
        carries = np.array([one.carry for _, one in batch])
        began = time.perf_counter()
        scores = model.run(windows, carries)
        self._metrics.compute_seconds.observe(time.perf_counter() - began)
        for row in unsound_rows(scores.q_values, scores.carry):
            batch[row][0].problem = not_finite()
        rows = zip(batch, events, windows, scores.carry, scores.q_values.tolist(), strict=True)
        for (work, one), event, row, after, q_values in rows:
            if work.problem is None:
                decision = _decision(event, q_values, model.manifest, role, rules)
                step = ScoredStep(one.name, event, row, one.carry, after, decision)
                work.scored[one.to_score[number]] = step
                one.carry = after

    def _record(self, steps: Iterable[ScoredStep], models: Models) -> None:
        """Count what was decided, and offer it to the shadow deployment."""
        for step in steps:
            decision = step.decision
            self._metrics.actions.labels(decision.action_name, decision.mode, decision.role).inc(1)
            self._metrics.observe_window(step.window)
            if models.challenger is not None:
                other = models.challenger if decision.role == "champion" else models.champion
                level, action = decision.isolation_level, Action(decision.action)
                self._shadow.offer(
                    Offer(step.window, step.before, level, action, decision.role, other)
                )


def _decision(
    event: Event, q_values: list[float], manifest: Manifest, role: Role, rules: Rules
) -> Decision:
    level, margin = event.isolation_level, rules.containment_margin
    values = mask(q_values, level)
    action = select(values, margin)
    confidence, reason = explain(action, values, level, margin)
    return Decision(
        decision_id=_new_id(),
        sandbox_id=event.sandbox_id,
        episode_id=str(event.episode_id),
        step=event.step,
        action=action,
        action_name=LABELS[action],
        q_values=q_values,
        confidence=confidence,
        reason=reason,
        isolation_level=level,
        mode=rules.mode_of(event.sandbox_id),
        model_version=manifest.model_version,
        role=role,
        sequence=manifest.sequence,
        features_version=manifest.features_version,
    )


def _journal_entry(step: ScoredStep, caller: Caller, rules: Rules) -> bytes:
    entry = JournalEntry(
        at_ms=time.time_ns() // 1_000_000,
        kept=in_share(step.name, rules.decision_log_share, 1),
        principal=caller.principal,
        trace_id=caller.trace_id,
        artifact_sha256=step.event.artifact_sha256,
        window=[None if isnan(value) else value for value in step.window.tolist()],
        carry=step.before.tolist(),
        decision=step.decision,
    )
    return pack_entry(entry)


def _new_id() -> str:
    """A random UUID (version 4), without the system call of `uuid.uuid4`: it is no secret."""
    digits = f"{_bits(128) & _FREE | _VERSION_4:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
