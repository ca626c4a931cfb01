"""`/console/decisions`: what is decided now, what was decided, and why."""

import asyncio
import datetime as dt
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import numpy as np
from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from drl_core.policy import actions
from drl_core.policy.actions import Action
from drl_serving.access.guards import requires
from drl_serving.audit.hook import Audited
from drl_serving.console.charts import Chart, Value, chart
from drl_serving.console.page_context import Console, problem_page
from drl_serving.console.pages import number, words
from drl_serving.console.schemas import TableRow
from drl_serving.decisions.schemas import Decision, JournalEntry
from drl_serving.decisions.state.decision_reader import DecisionReader
from drl_serving.decisions.state.journal import Journal
from drl_serving.http.problems import Problem, bad_request
from drl_serving.models.input_validation import CARRY_COLUMNS, WINDOW_COLUMNS

SHOWN = 50
_noted = Audited("decision.read")


class DecisionPages(Controller):
    """Decisions as they are made, as they were kept, and one with its inputs and its model."""

    path = "/console/decisions"
    include_in_schema = False
    guards = (requires("review"),)
    exception_handlers = {Exception: problem_page}  # noqa: RUF012 - as the framework reads it

    @get(operation_id="console_decisions", before_request=_noted)
    async def live(
        self,
        request: Request[Any, Any, Any],
        console: NamedDependency[Console],
        journal: NamedDependency[Journal],
        sandbox: FromQuery[str] = "",
        action: FromQuery[str] = "",
        paused: FromQuery[bool] = False,
    ) -> Response[str]:
        context = await asyncio.to_thread(_newest, journal, sandbox, action)
        return await console.page(request, "decisions.html", paused=paused, **context)

    @get("/rows", operation_id="console_decision_rows")
    async def rows(
        self,
        request: Request[Any, Any, Any],
        console: NamedDependency[Console],
        journal: NamedDependency[Journal],
        sandbox: FromQuery[str] = "",
        action: FromQuery[str] = "",
        after: FromQuery[int] = -1,
    ) -> Response[Any]:
        if journal.last() == after:
            return Response(None, status_code=204)  # which changes nothing on the page
        context = await asyncio.to_thread(_newest, journal, sandbox, action)
        return await console.page(request, "_rows.html", paused=False, **context)

    @get("/log", operation_id="console_decision_log", before_request=_noted)
    async def kept(
        self,
        request: Request[Any, Any, Any],
        console: NamedDependency[Console],
        reader: NamedDependency[DecisionReader],
        sandbox: FromQuery[str] = "",
        action: FromQuery[str] = "",
        cursor: FromQuery[str] = "",
    ) -> Response[str]:
        if "\0" in sandbox:
            raise bad_request("sandbox", "a NUL character is not accepted")
        found = await reader.page(
            sandbox_id=sandbox or None,
            episode_id=None,
            since=None,
            until=None,
            action=_action(action),
            limit=SHOWN,
            cursor=cursor or None,
        )
        return await console.page(
            request,
            "decision_log.html",
            rows=[_row(entry) for entry in found.items],
            asked={"sandbox": sandbox, "action": action},
            next=found.next,
        )

    @get("/{decision_id:uuid}", operation_id="console_decision", before_request=_noted)
    async def one(
        self,
        request: Request[Any, Any, Any],
        console: NamedDependency[Console],
        reader: NamedDependency[DecisionReader],
        decision_id: FromPath[UUID],
    ) -> Response[str]:
        entry = await reader.find(decision_id)
        try:
            lineage, gone = (await reader.lineage(decision_id)).model, None
        except Problem as problem:  # the release is pruned; what was decided stays known
            lineage, gone = None, problem
        return await console.page(
            request,
            "decision.html",
            entry=entry,
            made=entry.decision,
            at=_time(entry),
            q_chart=q_chart(entry.decision),
            inputs=_inputs(entry),
            model=lineage,
            gone=gone,
        )


def q_chart(made: Decision) -> Chart | None:
    """The Q-values of a decision, the chosen action strong and masked ones named."""
    allowed = actions.allowed(np.array(made.isolation_level))
    rows = [
        Value(
            words(action.label),
            made.q_values[action],
            strong=action == made.action,
            note="chosen" if action == made.action else "" if allowed[action] else "not allowed",
        )
        for action in Action
    ]
    return chart("Q-values", rows, bars=True)


def _inputs(entry: JournalEntry) -> list[tuple[str, str, str]]:
    """Name, this window's number, and the running number of the windows before."""
    before = dict(zip(CARRY_COLUMNS, entry.carry, strict=True))
    return [
        (
            words(name),
            "not measured" if value is None else number(value),
            number(before.get(f"sum_{name}")),
        )
        for name, value in zip(WINDOW_COLUMNS, entry.window, strict=True)
    ]


def _newest(journal: Journal, sandbox: str, action: str) -> dict[str, Any]:
    last = journal.last()  # first: what comes meanwhile is looked at again
    found = journal.newest_of(SHOWN, sandbox or None, _action(action))
    asked = {"sandbox": sandbox, "action": action}
    return {
        "rows": [_row(entry) for entry in found],
        "asked": asked,
        "more": urlencode({**asked, "after": last}),
        "query": urlencode(asked),
    }


def _row(entry: JournalEntry) -> TableRow:
    return TableRow(_time(entry), entry.decision)


def _time(entry: JournalEntry) -> dt.datetime:
    return dt.datetime.fromtimestamp(entry.at_ms / 1000, dt.UTC)


def _action(text: str) -> Action | None:
    """An action by its number; None for all.

    Raises:
        Problem: 400.
    """
    if not text:
        return None
    if text not in {str(int(action)) for action in Action}:
        raise bad_request("action", "0 to 4, or nothing for all")
    return Action(int(text))
