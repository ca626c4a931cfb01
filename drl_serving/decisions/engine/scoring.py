"""Steps in, decisions out: the models' Q-values, and the action that the rules make of them."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, isnan
from typing import NamedTuple

import numpy as np

from drl_core.policy.features import Array, window
from drl_core.telemetry.event import Event
from drl_serving.decisions.engine.action_selection import LABELS, Rules, choose, in_share
from drl_serving.decisions.schemas import Decision, JournalEntry, Role
from drl_serving.http.problems import Problem
from drl_serving.models.holder import ModelHolder
from drl_serving.models.onnx_model import ServedModel
from drl_serving.models.service import require_model

_FREE = ~(0xF << 76 | 0x3 << 62)
_VERSION_4 = 0x4 << 76 | 0x2 << 62
_bits = random.getrandbits  # seeded by the system, anew in each forked worker


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


def role_of(name: bytes, models: Models, rules: Rules) -> Role:
    """Which model decides an episode, by its database key."""
    if models.challenger is not None and in_share(name, rules.canary_share, 0):
        return "challenger"
    return "champion"


class Step(NamedTuple):
    """One step of an episode, ready to be decided."""

    name: bytes
    """The episode's database key."""
    event: Event
    before: Array
    """The carry of the steps before, float64 [14]."""
    caller: Caller


class Made(NamedTuple):
    """A step that was decided."""

    step: Step
    window: Array
    """float64 [14]"""
    after: Array
    """The carry that includes the window, float64 [14]."""
    decision: Decision


def score(
    steps: Sequence[Step], model: ServedModel, role: Role, rules: Rules
) -> list[Made | Problem]:
    """Decide one step of each of N episodes, as one batch.

    Returns:
        One outcome a step: 500 where the model's numbers for it are not finite.
    """
    windows = [window(step.event) for step in steps]
    scores = model.run(np.array(windows), np.array([step.before for step in steps]))
    rows = zip(steps, windows, scores.q_values.tolist(), scores.carry, strict=True)
    return [
        Made(step, row, after, make_decision(step.event, q_values, model, role, rules))
        if isfinite(sum(q_values)) and isfinite(sum(after.tolist()))
        else not_finite()
        for step, row, q_values, after in rows
    ]


def make_decision(
    event: Event, q_values: list[float], model: ServedModel, role: Role, rules: Rules
) -> Decision:
    """The decision that finite Q-values lead to."""
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


def journal_entry(made: Made, rules: Rules) -> JournalEntry:
    """A decision's place in the journal."""
    step = made.step
    return JournalEntry(
        at_ms=time.time_ns() // 1_000_000,
        kept=in_share(step.name, rules.decision_log_share, 1),
        principal=step.caller.principal,
        trace_id=step.caller.trace_id,
        artifact_sha256=step.event.artifact_sha256,
        window=[None if isnan(value) else value for value in made.window.tolist()],
        carry=step.before.tolist(),
        decision=made.decision,
    )


def not_finite() -> Problem:
    """For answers that nothing may be decided from."""
    return Problem(
        500,
        "model-not-finite",
        "the model answered with a number that is not finite; no action was decided",
        "Treat the artefact as undecided, and roll the model back.",
    )


def _new_id() -> str:
    """A random UUID (version 4), without the system call of `uuid.uuid4`: it is no secret."""
    digits = f"{_bits(128) & _FREE | _VERSION_4:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
