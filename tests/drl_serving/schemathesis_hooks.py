"""What schemathesis is told beyond the description; `SCHEMATHESIS_HOOKS` names this module."""

import re
import struct

import schemathesis
from hypothesis import strategies as st

_EVENT = "is_malicious|a year from 1970"
_RULES = {
    "decide": _EVENT,
    "decide_carried": f"{_EVENT}|out of the contract",
    "decide_rows": "multiple of 224|out of the contract",
    "ingest_telemetry": f"{_EVENT}|JSON",
    "store_patterns": "the year is not in",
    "search_patterns": "RFC3339|a time zone is missing|outside the years",
    "v2_infer": ".",
    "v2_infer_version": ".",
    "v2_load": "signed releases",
}
"""Operation -> what a refusal of data that fits the schema may say."""

_INTEGER = r"Expected `int( \| \w+)*`, got `float`"
"""To JSON Schema, 2.0 is an integer."""

_row = st.lists(st.floats(0, 1, width=32), min_size=9, max_size=9).map(
    lambda numbers: struct.pack("<28d", *numbers, 0, 0, 0, 1, *[0] * 15)
)
schemathesis.openapi.media_type(
    "application/octet-stream", st.lists(_row, min_size=1, max_size=4).map(b"".join)
)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Leave out made-up cursors: a valid one comes from a page before, which no schema says."""
    if case.meta is not None and case.meta.generation.mode.is_positive:
        for part in (case.query, case.body):
            if isinstance(part, dict):
                part.pop("cursor", None)
                part.pop("before", None)


@schemathesis.check
def refusals_name_a_rule(ctx, response, case):
    """Data that fits the schema is refused only for a rule that JSON Schema cannot say."""
    rule = _RULES.get(case.operation.definition.raw.get("operationId"))
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if rule and positive and response.status_code in (400, 422):
        detail = response.json()["detail"]
        assert re.search(f"{rule}|{_INTEGER}", detail), detail
