"""Pattern search: by filter, newest first, or by nearest neighbours of a state (pgvector).

Filters and a cursor go in, a page of patterns and its next cursor come out (keyset pagination).
Metadata is decrypted for whoever may call this.
"""

import asyncio
import datetime as dt
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from pgvector import Vector

from drl_core.policy.features import FEATURE_COUNT
from drl_core.storage.database import ReadPool
from drl_core.storage.encryption import Keyring
from drl_core.storage.patterns import COLUMNS, KEY, MAX_LIMIT, AttackPattern, unseal
from drl_serving.http.cursor import CursorError, Page, decode, encode

_CANDIDATES = 400
"""What the vector index looks at for one page; up to as many rows the answer is exact."""

_LIST = ", ".join(f'"{name}"' for name in (*COLUMNS, "metadata"))
_ORDER = ", ".join(KEY)


class Filter(Struct, frozen=True, kw_only=True):
    """Which patterns; None is all.

    `since` is included and `until` excluded; `min_confidence` is included.
    """

    attack_type: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    sandbox_id: str | None = None
    action: int | None = None
    min_confidence: float | None = None


class _NewestKey(Struct, frozen=True, array_like=True, tag="newest"):
    """The last pattern of a page by time."""

    sandbox_id: str
    episode_id: str
    step: int
    model_version: str
    time: dt.datetime


class _NearestKey(Struct, frozen=True, array_like=True, tag="nearest"):
    """The last pattern of a page by distance."""

    sandbox_id: str
    episode_id: str
    step: int
    model_version: str
    distance: float


class PatternStore:
    """Reads patterns for the service.

    Every method raises `DatabaseUnavailable` while the database gives no answer, and
    `EncryptionError` where a pattern cannot be opened.
    """

    def __init__(self, pool: ReadPool, keyring: Keyring) -> None:
        self._pool = pool
        self._keyring = keyring

    async def search(
        self, wanted: Filter | None = None, *, limit: int = 50, cursor: str | None = None
    ) -> Page[AttackPattern]:
        """Patterns by what they are, newest first.

        Args:
            wanted: which; all by default.
            limit: 1..1000.
            cursor: of the page before.

        Raises:
            CursorError: it is none of this search's.
        """
        _check_limit(limit)
        where, values = _conditions(wanted or Filter())
        if cursor is not None:
            after = _decode(cursor, _NewestKey)
            where.append(f'("time", {_ORDER}) < (%s, %s, %s, %s, %s)')
            values += [after.time, *_key(after)]
        newest_first = ", ".join(f"{name} DESC" for name in ('"time"', *KEY))
        rows = await self._pool.fetch(
            f"SELECT {_LIST} FROM attack_patterns WHERE {' AND '.join(where)}"  # noqa: S608
            f" ORDER BY {newest_first} LIMIT %s",
            [*values, limit + 1],
        )
        found = await asyncio.to_thread(self._unsealed, rows[:limit])
        more = len(rows) > limit
        return Page(found, encode(_newest_key(found[-1])) if more else None)

    async def nearest(
        self,
        features: Sequence[float] | npt.NDArray[np.floating[Any]],
        wanted: Filter | None = None,
        *,
        limit: int = 10,
        cursor: str | None = None,
    ) -> Page[tuple[AttackPattern, float]]:
        """The patterns nearest to a state, with their Euclidean distances, nearest first.

        Args:
            features: shape [30], finite.
            wanted: which; all by default.
            limit: 1..1000.
            cursor: of the page before, for the same features.

        Raises:
            CursorError: it is none of this search's.
        """
        _check_limit(limit)
        vector = np.asarray(features, dtype=np.float32)
        if vector.shape != (FEATURE_COUNT,) or not np.isfinite(vector).all():
            raise ValueError(f"features: {FEATURE_COUNT} finite numbers are expected")
        where, values = _conditions(wanted or Filter())
        if cursor is not None:
            after = _decode(cursor, _NearestKey)
            where.append(f"(features <-> %s, {_ORDER}) > (%s, %s, %s, %s, %s)")
            values += [Vector(vector), after.distance, *_key(after)]
        rows = await self._pool.fetch(
            f"SELECT {_LIST}, features <-> %s AS distance FROM attack_patterns"  # noqa: S608
            f" WHERE {' AND '.join(where)} ORDER BY distance, {_ORDER} LIMIT %s",
            [Vector(vector), *values, limit + 1],
            {
                "hnsw.ef_search": str(min(1000, max(_CANDIDATES, limit + 1))),
                "hnsw.iterative_scan": "strict_order",
            },
        )
        opened = await asyncio.to_thread(self._unsealed, rows[:limit])
        found = [(one, float(row["distance"])) for one, row in zip(opened, rows, strict=False)]
        more = len(rows) > limit
        return Page(found, encode(_nearest_key(*found[-1])) if more else None)

    def _unsealed(self, rows: Sequence[dict[str, Any]]) -> list[AttackPattern]:
        """In a thread: a thousand rows would hold up decisions for milliseconds."""
        return [unseal(row, self._keyring) for row in rows]


def _conditions(wanted: Filter) -> tuple[list[str], list[Any]]:
    """The parts of a WHERE clause and their values."""
    conditions = {
        "attack_type = %s": wanted.attack_type,
        '"time" >= %s': wanted.since,
        '"time" < %s': wanted.until,
        "sandbox_id = %s": wanted.sandbox_id,
        "action = %s": wanted.action,
        "confidence >= %s": wanted.min_confidence,
    }
    used = {text: value for text, value in conditions.items() if value is not None}
    return ["true", *used], [*used.values()]


def _key(pattern: _NewestKey | _NearestKey) -> list[Any]:
    return [getattr(pattern, name) for name in KEY]


def _newest_key(last: AttackPattern) -> _NewestKey:
    return _NewestKey(last.sandbox_id, last.episode_id, last.step, last.model_version, last.time)


def _nearest_key(last: AttackPattern, distance: float) -> _NearestKey:
    return _NearestKey(last.sandbox_id, last.episode_id, last.step, last.model_version, distance)


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit: {limit} is not in 1..{MAX_LIMIT}")


P = TypeVar("P", _NewestKey, _NearestKey)


def _decode(cursor: str, kind: type[P]) -> P:
    key = decode(cursor, kind)
    if any("\0" in name for name in (key.sandbox_id, key.episode_id, key.model_version)):
        raise CursorError
    return key
