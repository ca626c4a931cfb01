"""Decides events: orders them against what is known of their episodes, scores, picks an action.

Validated events come in, one decision an event goes out. A list is decided whole or not at all:
every event's place is checked first, scores are computed on the side, and only then is anything
kept. Where another worker moved an episode on meanwhile, the whole is done again from there.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, isnan

import msgspec
import numpy as np

from drl_core.actions import Action
from drl_core.features import CARRY_WIDTH, Array, window
from drl_core.telemetry import Event
from drl_serving.decisions.episodes import Episode, EpisodeKey, EpisodeStore, database_key
from drl_serving.decisions.ordering import episode_key, order
from drl_serving.decisions.rules import Rules, choose, in_share
from drl_serving.decisions.schemas import Decision, JournalEntry, Role
from drl_serving.decisions.shadow import Offer, Shadow
from drl_serving.metrics import Metrics
from drl_serving.model import ModelHolder, ServedModel
from drl_serving.models.service import require_model
from drl_serving.problems import Problem

_ATTEMPTS = 100
ROLES: tuple[Role, Role] = ("champion", "challenger")
_START = np.zeros(CARRY_WIDTH)
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Decision).decode


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, for the journal."""

    principal: str = "anonymous"
    trace_id: str = ""


ANYBODY = Caller()


@dataclass(frozen=True, slots=True)
class Models:
    """The models of one request, read once, so that versions and Q-values always match."""

    champion: ServedModel
    challenger: ServedModel | None = None

    def of(self, role: Role) -> ServedModel:
        """The model of a role; the champion where there is no challenger."""
        return self.challenger or self.champion if role == "challenger" else self.champion


def models_of(holder: ModelHolder) -> Models:
    """The models that decide now.

    Raises:
        Problem: 503 while there is none.
    """
    return Models(require_model(holder), holder.challenger)


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
        names = {key: database_key(key) for key in dict.fromkeys(map(episode_key, events))}
        for _ in range(_ATTEMPTS):
            known = self.episodes.read(names.values())
            work = _Work(self.rules, caller, models)
            for key, name in names.items():
                found = known[name]
                work.take(key, name, found.episode if found else None)
            work.decide(events)
            # in the order of last use, so that the episode named last is evicted last
            recent = list(dict.fromkeys(episode_key(event) for event in reversed(events)))
            changed = {
                names[key]: work.episodes[key] for key in reversed(recent) if key in work.changed
            }
            entries = [_pack(entry) for entry in work.entries]
            if not changed or self.episodes.commit(known, changed, entries):
                self._tell(work, models)
                decisions = work.decisions
                answers = [decisions[event.key] for event in events]
                return Decided(answers, [entry.decision for entry in work.entries])
        raise Problem(
            503,
            "episode-busy",
            "the episode is decided by too many requests at once",
            "Send an episode's steps one after another.",
            retry_after_s=1,
        )

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
        work = _Work(self.rules, caller, models)
        batch = [(episode_key(e), e, carry) for e, carry in zip(events, carries, strict=True)]
        work.names = {key: database_key(key) for key, _, _ in batch}
        decided: dict[int, tuple[Decision, list[float]]] = {}
        for role in ROLES:
            mine = [place for place, (key, _, _) in enumerate(batch) if work.role(key) == role]
            scored = work.score([batch[place] for place in mine], role)
            decided |= {
                p: (made, after.tolist()) for p, (made, after) in zip(mine, scored, strict=True)
            }
        self.episodes.commit({}, {}, [_pack(entry) for entry in work.entries])
        self._tell(work, models)
        return [decided[place] for place in range(len(batch))]

    def _tell(self, work: "_Work", models: Models) -> None:
        """Count what was decided, and hand it on for the model that did not decide it."""
        for (row, carry), entry in zip(work.inputs, work.entries, strict=True):
            made = entry.decision
            if self._metrics is not None:
                self._metrics.actions.labels(made.action_name, made.mode, made.role).inc()
                self._metrics.observe_window(row)
            if self._shadow is not None and models.challenger is not None:
                other = models.challenger if made.role == "champion" else models.champion
                self._shadow.offer(
                    Offer(row, carry, made.isolation_level, Action(made.action), made.role, other)
                )
        if self._metrics is not None and work.compute_s:
            self._metrics.compute_seconds.observe(work.compute_s)


@dataclass(slots=True)
class _Work:
    """One attempt at a request: everything that it would change, kept aside."""

    rules: Rules
    caller: Caller
    models: Models
    names: dict[EpisodeKey, bytes] = field(default_factory=dict)
    episodes: dict[EpisodeKey, Episode] = field(default_factory=dict)
    changed: set[EpisodeKey] = field(default_factory=set)
    decisions: dict[tuple[str, str, int], Decision] = field(default_factory=dict)
    entries: list[JournalEntry] = field(default_factory=list)
    inputs: list[tuple[Array, Array]] = field(default_factory=list)
    """The window and the carry of each entry."""
    compute_s: float = 0.0
    """That the models took."""

    def take(self, key: EpisodeKey, name: bytes, episode: Episode | None) -> None:
        """Begin from what is known of an episode."""
        self.names[key] = name
        version = self.models.champion.manifest.features_version
        if episode is None or episode.features_version != version:
            return  # folded by other features, as good as not known
        self.episodes[key] = episode
        if episode.decision is not None:
            self.decisions[*key, episode.step] = _unpack(episode.decision)

    def decide(self, events: Sequence[Event]) -> None:
        """Decide all events, one step of every episode at a time."""
        queues = order(events, {key: self.episodes.get(key) for key in self.names})
        while queues := {key: queue for key, queue in queues.items() if queue}:
            for role in ROLES:
                keys = [key for key in queues if self.role(key) == role]
                heads = [(key, queues[key].popleft()) for key in keys]
                batch = [(key, event, self._carry(key, event)) for key, event in heads]
                for (key, event, before), (decision, after) in zip(
                    batch, self.score(batch, role), strict=True
                ):
                    self.changed.add(key)
                    self.decisions[*key, event.step] = decision
                    self.episodes[key] = Episode(
                        event.step,
                        decision.features_version,
                        before.tobytes(),
                        after.tobytes(),
                        _pack(decision),
                    )

    def role(self, key: EpisodeKey) -> Role:
        """Which model decides an episode."""
        canary = self.models.challenger and in_share(self.names[key], self.rules.canary_share, 0)
        return "challenger" if canary else "champion"

    def score(
        self, batch: Sequence[tuple[EpisodeKey, Event, Array]], role: Role
    ) -> list[tuple[Decision, Array]]:
        """Decide one event of each of N episodes, each with the carry before it.

        Returns:
            Each decision, and the carry after it.
        """
        if not batch:
            return []
        model = self.models.of(role)
        windows = np.stack([window(event) for _, event, _ in batch])
        began = time.perf_counter()
        scores = model.run(windows, np.stack([carry for _, _, carry in batch]))
        self.compute_s += time.perf_counter() - began
        if not np.isfinite(scores.carry).all():
            raise not_finite()
        decided = []
        rows = zip(batch, windows, scores.q_values.tolist(), scores.carry, strict=True)
        for (key, event, before), row, q_values, after in rows:
            if not all(map(isfinite, q_values)):
                raise not_finite()
            decision = self._decision(event, q_values, model, role)
            self.inputs.append((row, before))
            self.entries.append(self._entry(key, event, decision, row, before))
            decided.append((decision, after))
        return decided

    def _carry(self, key: EpisodeKey, event: Event) -> Array:
        episode = self.episodes.get(key)
        if episode is None:
            return _START
        return episode.carry() if event.step > episode.step else episode.carry_before()

    def _decision(
        self, event: Event, q_values: list[float], model: ServedModel, role: Role
    ) -> Decision:
        rules, manifest = self.rules, model.manifest
        action, confidence, reason = choose(
            q_values, event.isolation_level, rules.containment_margin
        )
        return Decision(
            decision_id=str(uuid.uuid4()),
            sandbox_id=event.sandbox_id,
            episode_id=str(event.episode_id),
            step=event.step,
            action=action.value,
            action_name=action.label,
            q_values=q_values,
            confidence=confidence,
            reason=reason,
            isolation_level=event.isolation_level,
            mode=rules.mode_of(event.sandbox_id),
            model_version=manifest.model_version,
            role=role,
            sequence=manifest.sequence,
            features_version=manifest.features_version,
        )

    def _entry(
        self, key: EpisodeKey, event: Event, decision: Decision, row: Array, carry: Array
    ) -> JournalEntry:
        return JournalEntry(
            at_ms=time.time_ns() // 1_000_000,
            kept=in_share(self.names[key], self.rules.decision_log_share, 1),
            principal=self.caller.principal,
            trace_id=self.caller.trace_id,
            artifact_sha256=event.artifact_sha256,
            window=[None if isnan(value) else value for value in row.tolist()],
            carry=carry.tolist(),
            decision=decision,
        )


def not_finite() -> Problem:
    """For answers that nothing may be decided from."""
    return Problem(
        500,
        "model-not-finite",
        "the model answered with a number that is not finite; no action was decided",
        "Treat the artefact as undecided, and roll the model back.",
    )
