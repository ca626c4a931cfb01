"""One event's JSON to its decision's JSON, with nothing in between: what the front calls."""

from drl_core import telemetry
from drl_serving.access.principal import Principal
from drl_serving.access.service import Access
from drl_serving.decisions.attempt import Caller, models_of
from drl_serving.decisions.schemas import encode_json
from drl_serving.decisions.service import DecisionService
from drl_serving.model import ModelHolder
from drl_serving.tracing import Trace


class LeanDecision:
    """Answers `POST /v1/decisions` for one event, as the route of the same path does."""

    def __init__(self, access: Access, models: ModelHolder, decisions: DecisionService) -> None:
        self._access = access
        self._models = models
        self._decisions = decisions

    def __call__(self, body: bytes, principal: Principal, trace: Trace) -> bytes:
        """Decide.

        Raises:
            Exception: what `drl_serving.problems.as_problem` maps to an answer.
        """
        self._access.require(principal, "decide")
        event = telemetry.parse(body)
        caller = Caller(principal.id, trace.trace_id)
        return encode_json(self._decisions.decide_one(event, models_of(self._models), caller))
