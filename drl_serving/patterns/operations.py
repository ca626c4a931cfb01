"""OpenAPI request bodies of the pattern routes."""

from dataclasses import dataclass
from typing import Any

from litestar.openapi.spec import Example, OpenAPIMediaType, Operation, Reference, RequestBody

from drl_core.policy.features import FEATURE_COUNT
from drl_serving.http.openapi import inlined
from drl_serving.http.request_body import JSON
from drl_serving.patterns.schemas import NearestQuery, NewPattern

_EXAMPLE: dict[str, Any] = {
    "sandbox_id": "sandbox-1",
    "episode_id": "7f3a",
    "step": 4,
    "model_version": "20261122T120000Z-1a2b3c4d",
    "features": [0.1] * FEATURE_COUNT,
    "action": 3,
    "reward": 8.5,
    "attack_type": "ransomware",
    "confidence": 0.97,
    "time": "2026-11-22T12:00:00Z",
    "metadata": {"process": "invoice.exe"},
}


def _body(schema: Any, **examples: Any) -> RequestBody:
    named: dict[str, Example | Reference] = {
        name.replace("_", " "): Example(value=value) for name, value in examples.items()
    }
    return RequestBody(
        content={JSON: OpenAPIMediaType(schema=schema, examples=named)}, required=True
    )


@dataclass
class NewPatternsOperation(Operation):
    """An operation whose body is one pattern or a list of patterns."""

    def __post_init__(self) -> None:
        one = inlined(NewPattern)
        listed = {"type": "array", "items": one, "minItems": 1}
        self.request_body = _body(
            {"oneOf": [one, listed]}, one_pattern=_EXAMPLE, a_list=[_EXAMPLE, _EXAMPLE]
        )


@dataclass
class NearestOperation(Operation):
    """An operation whose body is the features of a state, and which patterns are wanted."""

    def __post_init__(self) -> None:
        state = {"features": [0.1] * FEATURE_COUNT, "limit": 5, "attack_type": "ransomware"}
        self.request_body = _body(inlined(NearestQuery), a_state=state)
