"""Searches for patterns and what they find, in JSON."""

from typing import Annotated

from msgspec import Meta, Struct

from drl_core.features import FEATURE_COUNT
from drl_core.patterns import AttackPattern


class NearestQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A state whose nearest patterns are wanted."""

    features: Annotated[
        list[Annotated[float, Meta(ge=0, le=1)]],
        Meta(min_length=FEATURE_COUNT, max_length=FEATURE_COUNT),
    ]
    """The 30 features of `drl_core.features`, each in 0..1."""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 10


class Neighbour(Struct, frozen=True):
    """A pattern and how far its features are from those asked for."""

    distance: float
    """Euclidean, over the 30 features."""
    pattern: AttackPattern
