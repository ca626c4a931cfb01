"""The place of events in their episodes: the next step, the last one again, or a 409."""

from collections import deque
from collections.abc import Mapping, Sequence

from drl_core.telemetry.event import Event
from drl_serving.decisions.state.episode_store import Episode, EpisodeKey
from drl_serving.http.problems import Problem

RESEND = "Send the episode's events so far, from step 0 and in order, as one list."


def episode_key(event: Event) -> EpisodeKey:
    """The episode that an event belongs to."""
    return event.sandbox_id, str(event.episode_id)


def order(
    events: Sequence[Event], known: Mapping[EpisodeKey, Episode | None]
) -> dict[EpisodeKey, deque[Event]]:
    """The events to decide of each episode, in order; steps that have their decision are left out.

    Raises:
        Problem: 409 for a step that is not its episode's next or last one; says what to send.
    """
    queues: dict[EpisodeKey, deque[Event]] = {key: deque() for key in known}
    last = {key: episode.step if episode else -1 for key, episode in known.items()}
    for position, event in enumerate(events):
        key = episode_key(event)
        check_step(event, position, last[key])
        episode, queue = known[key], queues[key]
        undecided = episode is not None and episode.decision is None and not queue
        if event.step > last[key] or undecided:
            queue.append(event)
            last[key] = event.step
    return queues


def check_step(event: Event, position: int, last: int) -> None:
    """Raise 409 unless the step is the next one, or the last one again."""
    if event.step in (last, last + 1) and event.step >= 0:
        return
    if last < 0:
        detail = f"step {event.step} of an episode that is not known (new, evicted or forgotten)"
        raise _conflict("unknown-episode", event, position, detail, RESEND)
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
