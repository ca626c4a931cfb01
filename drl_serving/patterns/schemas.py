"""JSON schemas of patterns, of searches for them, and of their results."""

import datetime as dt
from typing import Annotated

from msgspec import Meta, Struct

from drl_core.policy.actions import ACTION_COUNT
from drl_core.policy.features import FEATURE_COUNT
from drl_core.storage.patterns import MAX_LIMIT, AttackPattern

NO_NUL = "^[^\\x00]*$"
"""Text that PostgreSQL can hold."""
Name = Annotated[str, Meta(max_length=128, pattern=NO_NUL)]
MAX_CURSOR = 2048


class NewPattern(AttackPattern, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pattern to be stored."""


class AcceptedPatterns(Struct, frozen=True):
    """How many patterns are durable; they are found as soon as the database has them."""

    accepted: int


class NearestQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A state whose nearest patterns are wanted, perhaps only some kinds of them."""

    features: Annotated[
        list[Annotated[float, Meta(ge=0, le=1)]],
        Meta(min_length=FEATURE_COUNT, max_length=FEATURE_COUNT),
    ]
    """The 30 features of `drl_core.policy.features`, each in 0..1."""
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = 10
    cursor: Annotated[str, Meta(max_length=MAX_CURSOR)] | None = None
    """`next` of the page before, for the same features."""
    attack_type: Name | None = None
    since: dt.datetime | None = None
    """Earliest, included."""
    until: dt.datetime | None = None
    """Latest, excluded."""
    sandbox_id: Name | None = None
    action: Annotated[int, Meta(ge=0, lt=ACTION_COUNT)] | None = None
    min_confidence: Annotated[float, Meta(ge=0, le=1)] | None = None


class PatternPage(Struct, frozen=True):
    """Some patterns; `next` is the cursor of those that follow, null where none do."""

    items: list[AttackPattern]
    next: str | None


class Neighbour(Struct, frozen=True):
    """A pattern and how far its features are from those asked for."""

    distance: float
    """Euclidean, over the 30 features."""
    pattern: AttackPattern


class NeighbourPage(Struct, frozen=True):
    """Some neighbours, nearest first; `next` is the cursor of those that follow."""

    items: list[Neighbour]
    next: str | None
