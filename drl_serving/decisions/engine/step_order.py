"""Step order: the 409 for an event that is not its episode's next step, and what to send instead.

`drl_serving.decisions.engine.engine` enforces the order; here are the answers.
"""

from drl_core.telemetry.event import Event
from drl_serving.http.problems import Problem

_RESEND = "Send the episode's events so far, from step 0 and in order, as one list."


def step_conflict(event: Event, position: int, last: int) -> Problem:
    """The problem with a step that is neither the next one nor the last one again.

    Args:
        event: out of place.
        position: in the request.
        last: the episode's last step; -1 where the episode is not known.
    """
    step = event.step
    if last < 0:
        detail = f"step {step} of an episode that is not known (new, evicted or forgotten)"
        return _conflict("unknown-episode", event, position, detail, _RESEND)
    if step < last:
        detail = f"step {step} is older than the last decided step {last}"
        next_step = f"Send step {last + 1} next, or step {last} again for its decision."
        return _conflict("old-step", event, position, detail, next_step)
    first, final = last + 1, step - 1
    span = str(first) if first == final else f"{first} to {final}"
    detail = f"step {step} came after step {last}; missing: {span}"
    next_step = f"Send the missing steps {span} first, then step {step}."
    extra = {"missing_from": first, "missing_to": final}
    return _conflict("missing-steps", event, position, detail, next_step, extra)


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


def episode_busy() -> Problem:
    """The problem with an episode that other requests moved on at each attempt."""
    return Problem(
        503,
        "episode-busy",
        "the episode is decided by too many requests at once",
        "Send an episode's steps one after another.",
        retry_after_s=1,
    )
