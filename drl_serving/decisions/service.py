"""Decides events: orders them against what is known of their episodes, scores, picks an action.

Validated events come in, one decision an event goes out. A list is decided whole or not at all:
every event's place is checked first, then scores are computed on the side, and only then is
anything kept.
"""

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from drl_core.actions import Action, allowed
from drl_core.features import Array, start, window
from drl_core.telemetry import Event
from drl_serving.decisions.episodes import Episode, EpisodeKey, EpisodeStore
from drl_serving.decisions.schemas import Decision
from drl_serving.model import Float32, ServedModel
from drl_serving.problems import Problem

_RESEND = "Send the episode's events so far, from step 0 and in order, as one list."


@dataclass(frozen=True)
class Decided:
    """The answers to a list of events."""

    answers: list[Decision]
    """One an event; a redelivered step has the decision that it had before."""
    new: list[Decision]
    """Those that were made just now."""


class DecisionService:
    """Decides with whichever model it is handed; keeps the episodes' carries between calls."""

    def __init__(self, episodes: EpisodeStore, mode: Literal["observe", "enforce"]) -> None:
        self.episodes = episodes
        self.mode: Literal["observe", "enforce"] = mode
        """Named in every answer; may be changed while running."""

    def decide(self, events: Sequence[Event], model: ServedModel) -> Decided:
        """Decide events in their order; several episodes may be mixed.

        Raises:
            Problem: 409 for a step that is not an episode's next or last one, 500 for numbers
                that are not finite. Nothing is kept of any event then.
        """
        working = {key: self._known(key, model) for key in map(_key, events)}
        queues = _order(events, working)
        decisions: dict[tuple[str, str, int], Decision] = {
            (*key, known.step): known.decision for key, known in working.items() if known
        }
        new: list[Decision] = []
        wave = 0
        while queues := {key: queue for key, queue in queues.items() if wave < len(queue)}:
            batch = [(key, queue[wave]) for key, queue in queues.items()]
            wave += 1
            for key, episode in self._score(batch, working, model):
                working[key] = episode
                decisions[*key, episode.step] = episode.decision
                new.append(episode.decision)
        # in the order of last use, so that the episode named last is evicted last
        order = dict.fromkeys(_key(event) for event in reversed(events))
        self.episodes.put((k, e) for k in reversed(order) if (e := working[k]) is not None)
        return Decided([decisions[event.key] for event in events], new)

    def _known(self, key: EpisodeKey, model: ServedModel) -> Episode | None:
        """The kept episode; one that was folded by other features is as good as not known."""
        known = self.episodes.get(key)
        if known and known.decision.features_version != model.manifest.features_version:
            return None
        return known

    def _score(
        self,
        batch: list[tuple[EpisodeKey, Event]],
        working: dict[EpisodeKey, Episode | None],
        model: ServedModel,
    ) -> list[tuple[EpisodeKey, Episode]]:
        windows = np.stack([window(event) for _, event in batch])
        carry = start(len(batch))
        for row, (key, _) in enumerate(batch):
            if (known := working[key]) is not None:
                carry[row] = known.carry
        scores = model.run(windows, carry)
        _require_finite(scores.q_values, scores.carry)
        masks = allowed([event.isolation_level for _, event in batch])
        return [  # copies, since a row's view would keep the whole batch alive
            (key, Episode(self._decision(event, q, mask, model), after.copy()))
            for (key, event), q, mask, after in zip(
                batch, scores.q_values, masks, scores.carry, strict=True
            )
        ]

    def _decision(
        self, event: Event, q_values: Float32, mask: npt.NDArray[np.bool_], model: ServedModel
    ) -> Decision:
        action, confidence, reason = choose(q_values, mask, event.isolation_level)
        return Decision(
            decision_id=str(uuid.uuid4()),
            sandbox_id=event.sandbox_id,
            episode_id=str(event.episode_id),
            step=event.step,
            action=action.value,
            action_name=action.label,
            q_values=q_values.tolist(),
            confidence=confidence,
            reason=reason,
            isolation_level=event.isolation_level,
            mode=self.mode,
            model_version=model.manifest.model_version,
            sequence=model.manifest.sequence,
            features_version=model.manifest.features_version,
        )


def _order(
    events: Sequence[Event], known: Mapping[EpisodeKey, Episode | None]
) -> dict[EpisodeKey, list[Event]]:
    """The new events of each episode, in order; redeliveries of the last step are left out."""
    queues: dict[EpisodeKey, list[Event]] = {key: [] for key in known}
    last = {key: episode.step if episode else -1 for key, episode in known.items()}
    for position, event in enumerate(events):
        key = _key(event)
        _check_step(event, position, last[key])
        if event.step > last[key]:
            queues[key].append(event)
            last[key] = event.step
    return queues


def choose(
    q_values: Float32, mask: npt.NDArray[np.bool_], isolation_level: int
) -> tuple[Action, float, str]:
    """The allowed action of the highest Q-value, the confidence in it, and why.

    Args:
        q_values: finite, [5].
        mask: allowed actions, [5].
        isolation_level: for the sentence.
    """
    values = [float(q) if ok else -math.inf for q, ok in zip(q_values, mask, strict=True)]
    best, second = sorted(range(len(values)), key=lambda i: -values[i])[:2]
    confidence = 1.0 / sum(math.exp(value - values[best]) for value in values)
    reason = (
        f"{Action(best).label} has the highest Q-value, {values[best]:.4g}, "
        f"{values[best] - values[second]:.4g} above {Action(second).label}."
    )
    masked = [Action(i).label for i, ok in enumerate(mask) if not ok]
    if masked:
        reason += f" Masked at isolation level {isolation_level}: {', '.join(masked)}."
    return Action(best), confidence, reason


def _key(event: Event) -> EpisodeKey:
    return event.sandbox_id, str(event.episode_id)


def _check_step(event: Event, position: int, last: int) -> None:
    """Raise 409 unless the step is the next one, or the last one again."""
    if event.step in (last, last + 1):
        return
    if last < 0:
        detail = f"step {event.step} of an episode that is not known (new, evicted or forgotten)"
        raise _conflict("unknown-episode", event, position, detail, _RESEND)
    if event.step < last:
        detail = f"step {event.step} is older than the last decided step {last}"
        next_step = f"Send step {last + 1} next, or step {last} again for its decision."
        raise _conflict("old-step", event, position, detail, next_step)
    missing = [last + 1, event.step - 1]
    span = str(missing[0]) if missing[0] == missing[1] else f"{missing[0]} to {missing[1]}"
    detail = f"step {event.step} came after step {last}; missing: {span}"
    next_step = f"Send the missing steps {span} first, then step {event.step}."
    extra = {"missing_from": missing[0], "missing_to": missing[1]}
    raise _conflict("missing-steps", event, position, detail, next_step, extra)


def _conflict(
    name: str,
    event: Event,
    position: int,
    detail: str,
    next_step: str,
    extra: dict[str, int] | None = None,
) -> Problem:
    where = f"record {position}: sandbox {event.sandbox_id}, episode {event.episode_id}"
    members = {
        "record": position,
        "sandbox_id": event.sandbox_id,
        "episode_id": str(event.episode_id),
        "step": event.step,
        **(extra or {}),
    }
    return Problem(409, name, f"{where}: {detail}", next_step, field="step", extra=members)


def _require_finite(q_values: Float32, carry: Array) -> None:
    if not (np.isfinite(q_values).all() and np.isfinite(carry).all()):
        raise Problem(
            500,
            "model-not-finite",
            "the model answered with a number that is not finite; no action was decided",
            "Treat the artefact as undecided, and roll the model back.",
        )
