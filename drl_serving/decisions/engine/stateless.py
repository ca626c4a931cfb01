"""Decisions for callers that keep the history: events with their carry, or raw float rows.

Nothing is kept here. A carry that cannot be the fold of an episode's steps so far is refused: its
number of windows must be the event's step.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from drl_core.policy.actions import ACTION_COUNT, CONTAINING, MAX_ISOLATION_LEVEL, allowed
from drl_core.policy.features import CARRY_WIDTH, SIGNAL_COUNT, WINDOW_WIDTH, Array, start, window
from drl_core.telemetry.event import Event
from drl_serving.decisions.engine.scoring import Caller, Models, models_of, not_finite
from drl_serving.decisions.engine.service import DecisionService
from drl_serving.decisions.schemas import CarriedDecision, CarriedEvent
from drl_serving.http import request_body
from drl_serving.http.problems import Problem
from drl_serving.http.request_body import Limits
from drl_serving.models.holder import ModelHolder
from drl_serving.models.input_validation import validate
from drl_serving.models.onnx_model import ServedModel

ROW_WIDTH = WINDOW_WIDTH + CARRY_WIDTH
ANSWER_WIDTH = 1 + ACTION_COUNT + CARRY_WIDTH
INLINE_ROWS = 1024
"""Rows that are decided on the event loop, in a millisecond or two; more of them go to a thread."""
_ROW_BYTES = ROW_WIDTH * 8


def decide(
    records: Sequence[bytes], models: Models, decisions: DecisionService, caller: Caller
) -> list[CarriedDecision]:
    """Decide events, each with its own history.

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
    validate(np.stack([window(event) for event in events]), carries)
    decided = decisions.decide_carried(events, carries, models, caller)
    return [CarriedDecision(decision=made, carry=after) for made, after in decided]


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


def rows(body: bytes, most: int) -> Array:
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
    """Decides raw rows with the model and the rules of the moment."""

    def __init__(self, models: ModelHolder, decisions: DecisionService, limits: Limits) -> None:
        self._models = models
        self._decisions = decisions
        self._limits = limits

    async def decide(self, body: bytes) -> tuple[dict[str, str], bytes]:
        """Decide a body's rows; many of them in a thread.

        Returns:
            The headers that name the model, and rows of `ANSWER_WIDTH` little-endian float64.

        Raises:
            Problem: 400, 413, 500 or 503.
        """
        table = rows(body, self._limits.max_batch)
        model = models_of(self._models).champion
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
        margin: as in `drl_serving.decisions.engine.action_selection.choose`.

    Returns:
        float64 [N, 20]: action, five Q-values, the next carry.

    Raises:
        Problem: 400 for values out of the contract, 500 for answers that are not finite.
    """
    windows = np.ascontiguousarray(table[:, :WINDOW_WIDTH])
    carry = np.ascontiguousarray(table[:, WINDOW_WIDTH:])
    validate(windows, carry)
    scores = model.run(windows, carry)
    answer = np.empty((len(windows), ANSWER_WIDTH))
    answer[:, 1 : 1 + ACTION_COUNT] = scores.q_values
    answer[:, 1 + ACTION_COUNT :] = scores.carry
    if not np.isfinite(answer[:, 1:]).all():
        raise not_finite()
    answer[:, 0] = actions(scores.q_values, windows[:, -1], margin)
    return answer


def actions(
    q_values: npt.NDArray[np.float32], isolation_level: Array, margin: float
) -> npt.NDArray[np.int64]:
    """`drl_serving.decisions.engine.action_selection.choose` for many rows: the action ids, [N]."""
    values = q_values.astype(np.float64)
    if isolation_level.max() >= MAX_ISOLATION_LEVEL:
        values[~allowed(isolation_level.astype(np.int64))] = -np.inf
    best = values.argmax(1)
    if margin:
        others = values.copy()
        others[:, [int(action) for action in CONTAINING]] = -np.inf
        second = others.argmax(1)
        at = np.arange(len(values))
        containing = np.isin(best, CONTAINING)
        best = np.where(containing & (values[at, best] - values[at, second] < margin), second, best)
    chosen: npt.NDArray[np.int64] = best
    return chosen
