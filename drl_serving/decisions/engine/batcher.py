"""Single events to their decisions, in batches: what waits at one moment is decided at once."""

import asyncio

from drl_core.telemetry.event import Event
from drl_serving.decisions.engine.scoring import Caller, models_of
from drl_serving.decisions.engine.service import DecisionService
from drl_serving.decisions.schemas import Decision
from drl_serving.http.problems import Problem
from drl_serving.models.holder import ModelHolder


class Batcher:
    """Dynamic batching of single events.

    Those that came in during one turn of the event loop are one run of the graph and one
    transaction. Nobody waits for others to come: the turn ends when nothing else is ready.
    """

    def __init__(self, decisions: DecisionService, models: ModelHolder) -> None:
        self._decisions = decisions
        self._models = models
        self._waiting: list[tuple[Event, Caller, asyncio.Future[Decision]]] = []

    def decide(self, event: Event, caller: Caller) -> asyncio.Future[Decision]:
        """The decision of one event, as soon as the turn ends."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._end_turn)
        future: asyncio.Future[Decision] = loop.create_future()
        self._waiting.append((event, caller, future))
        return future

    def _end_turn(self) -> None:
        waiting = [one for one in self._waiting if not one[2].done()]  # some were given up
        self._waiting = []
        try:
            requests = [(event, caller) for event, caller, _ in waiting]
            outcomes = self._decisions.decide_each(requests, models_of(self._models))
        except Exception as error:  # told to everyone who waits
            for _, _, future in waiting:
                future.set_exception(error)
            return
        for (_, _, future), outcome in zip(waiting, outcomes, strict=True):
            if isinstance(outcome, Problem):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
