"""The decision engine: dynamic batching of requests, events in, one decision an event out.

A request is a group of events that is decided whole or not at all: a single event is a group of
one, a list a group of many, and a request with carried histories brings them along and leaves no
episode behind. All go one way. The requests that came in during one turn of the event loop are one
batch: their episodes are read, each event's place in its episode is checked, the next step of every
episode is scored in one run of the model, round after round, and what became of the episodes is
committed in one transaction. It is optimistic concurrency: scoring holds no lock, and a request of
which another worker moved an episode on meanwhile is decided again from there.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from math import isnan
from operator import attrgetter

import numpy as np

from drl_core.policy.actions import Action
from drl_core.policy.features import CARRY_WIDTH, Array, window
from drl_core.release.manifest import Manifest
from drl_core.telemetry.event import Event
from drl_serving.decisions.engine.action_selection import (
    LABELS,
    Rules,
    explain,
    in_share,
    select_actions,
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

    __slots__ = ("carry", "last", "name", "named", "role", "to_score", "work")

    def __init__(self, work: "_WorkingSet", name: bytes, role: Role) -> None:
        self.work = work
        self.name = name
        self.role: Role = role
        self.last = -1
        """The last step that has a decision, or will have one; -1 for an unknown episode."""
        self.carry = _START
        """Before the next step to score."""
        self.to_score: list[int] = []
        """Places of the events that have no decision yet, in order."""
        self.named = 0
        """Place of the last event that names the episode."""

    def resume(self, kept: Episode, step: int) -> None:
        """Continue from a kept episode; `step` is the first that is asked for."""
        if kept.decision is None and step == kept.step:  # restored: its decision is made now
            self.last, self.carry = step - 1, kept.carry_before()
        else:
            self.last, self.carry = kept.step, kept.carry()


class _WorkingSet:
    """Everything that deciding a request would change, kept aside until it is committed."""

    __slots__ = (
        "decided",
        "episodes",
        "names",
        "problem",
        "repeats",
        "request",
        "scored",
        "stored",
    )

    def __init__(self, request: DecisionRequest) -> None:
        self.request = request
        self.names = [database_key(episode_key(event)) for event in request.events]
        self.stored = self.names if request.carries is None else []
        """The episodes that are read from the store and continue in it."""
        self.problem: Problem | None = None

    def plan(
        self, read: Mapping[bytes, EpisodeSnapshot | None], models: Models, rules: Rules
    ) -> list[_EpisodeSteps]:
        """Put the events in the order of their episodes' steps; an attempt before is forgotten.

        Raises:
            Problem: 409 for a step that is not its episode's next or last one.
        """
        self.scored: dict[int, ScoredStep] = {}
        self.decided: dict[int, Decision] = {}
        """Events that have their decision from before."""
        self.repeats: dict[int, int] = {}
        """Events that repeat one before them in the request."""
        self.episodes: list[_EpisodeSteps] = []
        if self.request.carries is not None:
            return self._plan_carried(self.request.carries, models, rules)
        known: dict[bytes, _EpisodeSteps] = {}
        for place, event in enumerate(self.request.events):
            name, step = self.names[place], event.step
            found, episode = read[name], known.get(name)
            if episode is None:
                role = rules.role_of(name, models)
                episode = known[name] = _EpisodeSteps(self, name, role)
                features = models.of(role).manifest.features_version
                if found is not None and found.episode.continues(step, features):
                    episode.resume(found.episode, step)
                self.episodes.append(episode)
            episode.named = place
            if step == episode.last + 1:
                episode.to_score.append(place)
                episode.last = step
            elif step != episode.last or step < 0:
                raise step_conflict(event, place, episode.last)
            elif episode.to_score:
                self.repeats[place] = episode.to_score[-1]
            elif found is not None:
                self.decided[place] = found.episode.made()
        return self.episodes

    def _plan_carried(self, carries: Array, models: Models, rules: Rules) -> list[_EpisodeSteps]:
        for place, (name, carry) in enumerate(zip(self.names, carries, strict=True)):
            episode = _EpisodeSteps(self, name, rules.role_of(name, models))
            episode.carry = carry
            episode.to_score.append(place)
            self.episodes.append(episode)
        return self.episodes

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
        decided, repeats, scored = self.decided, self.repeats, self.scored
        answers = [
            decided[place] if place in decided else scored[repeats.get(place, place)].decision
            for place in range(len(self.names))
        ]
        return Decided(answers, scored)


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
        steps: list[_EpisodeSteps] = []
        for work in turn:
            try:
                steps += work.plan(read, models, rules)
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

    def _score_rounds(self, steps: list[_EpisodeSteps], models: Models, rules: Rules) -> None:
        """Score one step of every episode at a time, until all events have their decisions."""
        roles = _ROLES if models.challenger is not None else _ROLES[:1]
        for number in count():
            steps = [
                one for one in steps if len(one.to_score) > number and one.work.problem is None
            ]
            if not steps:
                return
            for role in roles:
                batch = [one for one in steps if one.role == role]
                if batch:
                    self._score(batch, number, models.of(role), role, rules)

    def _score(
        self,
        batch: Sequence[_EpisodeSteps],
        number: int,
        model: ServedModel,
        role: Role,
        rules: Rules,
    ) -> None:
        """Score the next step of each of N episodes in one run of the model.

        It fails closed: a request with a number that is not finite gets a 500.
        """
        events = [one.work.request.events[one.to_score[number]] for one in batch]
        windows = np.array([window(event) for event in events])
        carries = np.array([one.carry for one in batch])
        began = time.perf_counter()
        scores = model.run(windows, carries)
        self._metrics.compute_seconds.observe(time.perf_counter() - began)
        for row in unsound_rows(scores.q_values, scores.carry):
            batch[row].work.problem = not_finite()
        actions, allowed = select_actions(scores.q_values, windows[:, -1], rules.containment_margin)
        rows = zip(
            batch, events, windows, scores.carry,
            scores.q_values.tolist(), actions.tolist(), allowed.tolist(), strict=True,
        )  # fmt: skip
        for one, event, row, after, q_values, action, values in rows:
            if one.work.problem is None:
                decision = _decision(event, q_values, action, values, model.manifest, role, rules)
                step = ScoredStep(one.name, event, row, one.carry, after, decision)
                one.work.scored[one.to_score[number]] = step
                one.carry = after

    def _record(self, steps: Iterable[ScoredStep], models: Models) -> None:
        """Count what was decided, and offer it to the shadow deployment."""
        for step in steps:
            decision = step.decision
            self._metrics.actions.labels(decision.action_name, decision.mode, decision.role).inc()
            self._metrics.observe_window(step.window)
            if models.challenger is not None:
                other = models.challenger if decision.role == "champion" else models.champion
                level, action = decision.isolation_level, Action(decision.action)
                self._shadow.offer(
                    Offer(step.window, step.before, level, action, decision.role, other)
                )


def _decision(
    event: Event,
    q_values: list[float],
    action: int,
    values: list[float],
    manifest: Manifest,
    role: Role,
    rules: Rules,
) -> Decision:
    level = event.isolation_level
    confidence, reason = explain(action, values, level, rules.containment_margin)
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


def _journal_entry(step: ScoredStep, caller: Caller, rules: Rules) -> JournalEntry:
    return JournalEntry(
        at_ms=time.time_ns() // 1_000_000,
        kept=in_share(step.name, rules.decision_log_share, 1),
        principal=caller.principal,
        trace_id=caller.trace_id,
        artifact_sha256=step.event.artifact_sha256,
        window=[None if isnan(value) else value for value in step.window.tolist()],
        carry=step.before.tolist(),
        decision=step.decision,
    )


def _new_id() -> str:
    """A random UUID (version 4), without the system call of `uuid.uuid4`: it is no secret."""
    digits = f"{_bits(128) & _FREE | _VERSION_4:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
