"""One attempt at a request's events: everything that deciding them would change, kept aside."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, isnan

import msgspec
import numpy as np

from drl_core.features import CARRY_WIDTH, Array, window
from drl_core.telemetry import Event
from drl_serving.decisions.episodes import Episode, EpisodeKey
from drl_serving.decisions.ordering import order
from drl_serving.decisions.rules import LABELS, Rules, choose, in_share
from drl_serving.decisions.schemas import Decision, JournalEntry, Role
from drl_serving.model import ModelHolder, ServedModel
from drl_serving.models.service import require_model
from drl_serving.problems import Problem

ROLES: tuple[Role, Role] = ("champion", "challenger")
START = np.zeros(CARRY_WIDTH)
"""The carry before an episode's first window."""
_FREE = ~(0xF << 76 | 0x3 << 62)
_VERSION_4 = 0x4 << 76 | 0x2 << 62
_bits = random.getrandbits  # seeded by the system, anew in each forked worker
pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder(Decision).decode


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
    entries: list[JournalEntry] = field(default_factory=list)
    inputs: list[tuple[Array, Array]] = field(default_factory=list)
    """The window and the carry of each entry."""
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
                        pack(decision),
                    )

    def role(self, key: EpisodeKey) -> Role:
        """Which model decides an episode."""
        return role_of(self.names[key], self.models, self.rules)

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
            decision = make_decision(event, q_values, model, role, self.rules)
            self.inputs.append((row, before))
            entry = make_entry(
                self.names[key], event, decision, self.rules, self.caller, row, before
            )
            self.entries.append(entry)
            decided.append((decision, after))
        return decided

    def _carry(self, key: EpisodeKey, event: Event) -> Array:
        episode = self.episodes.get(key)
        if episode is None:
            return START
        return episode.carry() if event.step > episode.step else episode.carry_before()


def goes_on(episode: Episode, event: Event, model: ServedModel) -> bool:
    """Whether an event goes on from a kept episode; otherwise the episode is as good as not known.

    One that was folded by other features cannot; one that came back from telemetry and has no
    decision yet may be begun again from its step 0.
    """
    if episode.features_version != model.manifest.features_version:
        return False
    return episode.decision is not None or event.step > 0


def role_of(name: bytes, models: Models, rules: Rules) -> Role:
    """Which model decides an episode, by its database key."""
    if models.challenger is not None and in_share(name, rules.canary_share, 0):
        return "challenger"
    return "champion"


def make_decision(
    event: Event, q_values: list[float], model: ServedModel, role: Role, rules: Rules
) -> Decision:
    """The decision that Q-values lead to.

    Raises:
        Problem: 500 for numbers that are not finite.
    """
    if not all(map(isfinite, q_values)):
        raise not_finite()
    manifest, level = model.manifest, event.isolation_level
    action, confidence, reason = choose(q_values, level, rules.containment_margin)
    return Decision(
        decision_id=_new_id(),
        sandbox_id=event.sandbox_id,
        episode_id=str(event.episode_id),
        step=event.step,
        action=int(action),
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


def _new_id() -> str:
    """A random UUID (version 4), without the system call of `uuid.uuid4`: it is no secret."""
    digits = f"{_bits(128) & _FREE | _VERSION_4:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def make_entry(
    name: bytes,
    event: Event,
    decision: Decision,
    rules: Rules,
    caller: Caller,
    row: Array,
    before: Array,
) -> JournalEntry:
    """A decision's place in the journal.

    Args:
        name: the episode's database key.
        event: what was decided on.
        decision: what was decided.
        rules: in force.
        caller: who asked.
        row: the window, [14].
        before: the carry before it, [14].
    """
    return JournalEntry(
        at_ms=time.time_ns() // 1_000_000,
        kept=in_share(name, rules.decision_log_share, 1),
        principal=caller.principal,
        trace_id=caller.trace_id,
        artifact_sha256=event.artifact_sha256,
        window=[None if isnan(value) else value for value in row.tolist()],
        carry=before.tolist(),
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
