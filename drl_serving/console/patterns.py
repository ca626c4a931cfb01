"""`/console/patterns`: learned attack patterns by what they are, or near to a decision."""

import datetime as dt
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import numpy as np
from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency

from drl_core.policy import features
from drl_core.policy.actions import Action
from drl_core.storage.patterns import AttackPattern
from drl_serving.access.guards import requires
from drl_serving.audit.hook import Audited
from drl_serving.console.page_context import Console, problem_page
from drl_serving.decisions.schemas import JournalEntry
from drl_serving.decisions.state.decision_reader import DecisionReader
from drl_serving.http.problems import bad_request
from drl_serving.patterns.search import Filter
from drl_serving.patterns.service import Patterns

SHOWN = 25
FIELDS = ("attack_type", "since", "until", "sandbox_id", "action", "min_confidence", "near")


class PatternPages(Controller):
    """Searches patterns. What is personal of them is opened, as for the API."""

    path = "/console/patterns"
    include_in_schema = False
    guards = (requires("patterns"),)
    before_request = Audited("patterns.read")
    exception_handlers = {Exception: problem_page}  # noqa: RUF012 - as the framework reads it

    @get(operation_id="console_patterns")
    async def search(
        self,
        request: Request[Any, Any, Any],
        console: NamedDependency[Console],
        patterns: NamedDependency[Patterns],
        reader: NamedDependency[DecisionReader],
    ) -> Response[str]:
        sent = request.query_params
        asked = {name: str(sent.get(name, "")).strip() for name in FIELDS}
        wanted, cursor = _filter(asked), sent.get("cursor") or None
        near = None
        if asked["near"]:
            console.require(request, "review")
            near = await reader.find(_uuid(asked["near"]))
        found: list[tuple[AttackPattern, float | None]]
        async with patterns.store() as store:
            if near is None:
                page = await store.search(wanted, limit=SHOWN, cursor=cursor)
                found, following = [(pattern, None) for pattern in page.items], page.next
            else:
                close = await store.nearest(state(near), wanted, limit=SHOWN, cursor=cursor)
                found, following = [*close.items], close.next
        used = {name: text for name, text in asked.items() if text}
        return await console.page(
            request,
            "patterns.html",
            found=found,
            asked=asked,
            near=near,
            labels=[action.label for action in Action],
            next=urlencode({**used, "cursor": following}) if following else None,
        )


def state(entry: JournalEntry) -> Any:
    """The features of a decision's state, float32 [30]."""
    window = np.array([entry.window], dtype=np.float64)  # None becomes NaN
    first = np.ones(1, dtype=np.bool_)
    found, _ = features.fold(window, first, np.array([entry.carry], dtype=np.float64))
    return found[0]


def _filter(asked: Mapping[str, str]) -> Filter:
    """The filter of a form.

    Raises:
        Problem: 400, naming the field.
    """
    for name, text in asked.items():
        if "\0" in text:
            raise bad_request(name, "a NUL character is not accepted")
    action, least = asked["action"], asked["min_confidence"]
    if action and action not in {str(int(one)) for one in Action}:
        raise bad_request("action", "0 to 4, or nothing for all")
    try:
        confidence = float(least) if least else None
    except ValueError:
        confidence = -1.0
    if confidence is not None and not 0 <= confidence <= 1:
        raise bad_request("min_confidence", "a number from 0 to 1 is expected")
    return Filter(
        attack_type=asked["attack_type"] or None,
        since=_when("since", asked["since"]),
        until=_when("until", asked["until"]),
        sandbox_id=asked["sandbox_id"] or None,
        action=int(action) if action else None,
        min_confidence=confidence,
    )


def _when(field: str, text: str) -> dt.datetime | None:
    """A time; in UTC where it names no zone, as browsers send it."""
    if not text:
        return None
    try:
        when = dt.datetime.fromisoformat(text)
        return when.replace(tzinfo=dt.UTC) if when.tzinfo is None else when.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise bad_request(field, "a time such as 2026-11-22T12:00 is expected") from None


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise bad_request("near", "a decision's id is expected") from None
