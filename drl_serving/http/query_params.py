"""Query parameters: times are RFC 3339 with a zone, nothing else."""

import datetime as dt
from typing import Annotated

import msgspec
from litestar.params import Parameter

from drl_serving.http.problems import bad_request

FROM_0 = {"minimum": 0}
"""The framework's description leaves out a least value of 0."""
_FORMAT = {"format": "date-time"}
Since = Annotated[
    str | None, Parameter(description="Earliest, included.", schema_extra=_FORMAT, max_length=40)
]
Until = Annotated[
    str | None, Parameter(description="Latest, excluded.", schema_extra=_FORMAT, max_length=40)
]


def moment(field: str, given: str | dt.datetime | None) -> dt.datetime | None:
    """A time in UTC.

    Raises:
        Problem: 400, it is no time, has no zone, or is outside the years 1..9999 in UTC.
    """
    if given is None:
        return None
    try:
        when = msgspec.convert(given, dt.datetime) if isinstance(given, str) else given
    except msgspec.ValidationError:
        raise bad_request(field, "no RFC 3339 time, such as 2026-11-22T12:00:00Z") from None
    if when.tzinfo is None:
        raise bad_request(field, "a time zone is missing, such as 2026-11-22T12:00:00Z")
    try:
        return when.astimezone(dt.UTC)
    except OverflowError:
        raise bad_request(field, "the time is outside the years 1..9999") from None
