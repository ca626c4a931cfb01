"""Stateless decisions: the caller keeps the history, as carries in JSON or as raw float rows.

Nothing is kept here but the journal of JSON decisions. A carry that cannot be the fold of an
episode's steps so far is refused: its number of windows must be the event's step.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np

from drl_core.policy.actions import ACTION_COUNT
from drl_core.policy.features import (
    CARRY_WIDTH,
    SIGNAL_COUNT,
    WINDOW_WIDTH,
    Array,
    start,
    windows_of,
)
from drl_core.telemetry.event import Event
from drl_serving.decisions.engine.action_selection import select_actions
from drl_serving.decisions.engine.engine import DecisionEngine
from drl_serving.decisions.engine.requests import Caller, DecisionRequest
from drl_serving.decisions.schemas import CarriedEvent
from drl_serving.http import request_body
from drl_serving.http.problems import Problem
from drl_serving.http.request_body import Limits
from drl_serving.models.input_validation import validate
from drl_serving.models.onnx_model import ServedModel, not_finite, unsound_rows

ROW_WIDTH = WINDOW_WIDTH + CARRY_WIDTH
ANSWER_WIDTH = 1 + ACTION_COUNT + CARRY_WIDTH
INLINE_ROWS = 1024
"""Rows that are decided on the event loop, in a millisecond or two; more of them go to a thread."""
_ROW_BYTES = ROW_WIDTH * 8


def carried_request(records: Sequence[bytes], caller: Caller) -> DecisionRequest:
    """The request of events, each with its own history.

    Raises:
        Problem: 400 for what is not a `CarriedEvent`, 409 for a history that misses steps.
    """
    if not records:
        raise Problem(
            400, "invalid-body", "$: the list is empty", "Send at least one event.", field="$"
        )
    sent = [request_body.decode(raw, CarriedEvent) for raw in records]
    carries = np.stack([_history(number, one) for number, one in enumerate(sent)])
    events = [one.event for one in sent]
    validate(windows_of(events), carries)
    return DecisionRequest(events, caller, carries)


def _history(position: int, sent: CarriedEvent) -> Array:
    """The carry of one event, [14].

    Raises:
        Problem: 409, where it is not of the steps before the event.
    """
    carry = start()[0] if sent.carry is None else np.array(sent.carry)
    windows = carry[SIGNAL_COUNT]
    if windows == sent.event.step:
        return carry
    event: Event = sent.event
    has = "no carry" if sent.carry is None else f"a carry of {windows:g} windows"
    raise Problem(
        409,
        "missing-steps",
        f"record {position}: step {event.step} came with {has}, {event.step} are expected",
        f"Send the carry that step {event.step - 1} was answered with, or all steps from 0."
        if event.step
        else "Leave the carry out at step 0.",
        field="carry",
        extra={"record": position, "step": event.step},
    )


def read_rows(body: bytes, most: int) -> Array:
    """A body's rows, float64 [N, 28].

    Raises:
        Problem: 400 where it is not whole rows, 413 where it is too many.
    """
    count, rest = divmod(len(body), _ROW_BYTES)
    if rest or not count:
        raise Problem(
            400,
            "invalid-rows",
            f"$: {len(body)} bytes, expected a multiple of {_ROW_BYTES}: rows of {ROW_WIDTH} "
            "little-endian float64",
            "Send whole rows: the window's 14 numbers, then the carry's 14.",
            field="$",
        )
    request_body.limit(count, most)
    return np.frombuffer(body, dtype="<f8").reshape(count, ROW_WIDTH)


class RowDecider:
    """Decides raw rows with the engine's models and rules of the moment."""

    def __init__(self, decisions: DecisionEngine, limits: Limits) -> None:
        self._decisions = decisions
        self._limits = limits

    async def decide_body(self, body: bytes) -> tuple[dict[str, str], bytes]:
        """Decide a body's rows; many of them in a thread.

        Returns:
            The headers that name the model, and rows of `ANSWER_WIDTH` little-endian float64.

        Raises:
            Problem: 400, 413, 500 or 503.
        """
        table = read_rows(body, self._limits.max_batch)
        model = self._decisions.models().champion
        work = partial(decide_rows, table, model, self._decisions.rules.containment_margin)
        answer = work() if len(table) <= INLINE_ROWS else await asyncio.to_thread(work)
        manifest = model.manifest
        headers = {
            "X-Model-Version": manifest.model_version,
            "X-Features-Version": str(manifest.features_version),
        }
        return headers, answer.tobytes()


def decide_rows(table: Array, model: ServedModel, margin: float) -> Array:
    """Decide rows at once.

    Args:
        table: float64 [N, 28]: windows, then carries.
        model: decides.
        margin: as in `drl_serving.decisions.engine.action_selection.select_actions`.

    Returns:
        float64 [N, 20]: action, five Q-values, the next carry.

    Raises:
        Problem: 400 for values out of the contract, 500 for answers that are not finite.
    """
    windows = np.ascontiguousarray(table[:, :WINDOW_WIDTH])
    carry = np.ascontiguousarray(table[:, WINDOW_WIDTH:])
    validate(windows, carry)
    scores = model.run(windows, carry)
    if unsound_rows(scores.q_values, scores.carry):
        raise not_finite()
    answer = np.empty((len(windows), ANSWER_WIDTH))
    answer[:, 0] = select_actions(scores.q_values, windows[:, -1], margin)
    answer[:, 1 : 1 + ACTION_COUNT] = scores.q_values
    answer[:, 1 + ACTION_COUNT :] = scores.carry
    return answer
