"""Where each running episode stands, shared by the workers; the least recently used goes first.

An episode that is kept is the fold of its steps 0 to `step`, none missing; one that is evicted is
forgotten whole, so nothing is ever decided from part of a history. Changes and their journal
entries are one transaction: a step that two workers decide at once is decided by one of them.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import lmdb
import msgspec
import numpy as np
from msgspec import Struct

from drl_core.policy.features import Array
from drl_serving.storage.shared_state import SharedState

EpisodeKey = tuple[str, str]
"""(sandbox_id, episode_id)"""

MAX_JOURNAL = 200_000
"""Entries of the journal at most, where nothing carries them on into the decision log."""


class Episode(Struct, frozen=True, array_like=True, gc=False):
    """An episode after its step `step`."""

    step: int
    features_version: int
    before: bytes
    """The carry that `step` was decided from, float64 [14]."""
    after: bytes
    """The carry that includes `step`."""
    decision: bytes | None
    """The decision of `step` in MessagePack; None where it came back from telemetry."""

    def carry(self) -> Array:
        """float64 [14], for the next step."""
        return np.frombuffer(self.after)

    def carry_before(self) -> Array:
        """float64 [14], for this step once more."""
        return np.frombuffer(self.before)


class Known(Struct, frozen=True, gc=False):
    """An episode as it was read: `raw` tells whether it went on since."""

    raw: bytes
    episode: Episode


_decode: Callable[[bytes], Episode] = msgspec.msgpack.Decoder(Episode).decode
_encode = msgspec.msgpack.Encoder().encode
_STAMP = 8


def database_key(key: EpisodeKey) -> bytes:
    """16 bytes that stand for an episode, whatever the length of its names."""
    return hashlib.blake2b(f"{key[0]}\0{key[1]}".encode(), digest_size=16).digest()


class EpisodeStore:
    """At most `capacity` episodes, each for `ttl_s` seconds after its last use."""

    def __init__(self, state: SharedState, capacity: int, ttl_s: int) -> None:
        self._state = state
        self._capacity = capacity
        self._ttl_ns = ttl_s * 1_000_000_000

    def __len__(self) -> int:
        with self._state.env.begin() as reading:
            return int(reading.stat(self._state.episodes)["entries"])

    def read(self, keys: Collection[bytes]) -> dict[bytes, Known | None]:
        """Episodes by database key, in one consistent view; None for unknown and expired ones."""
        expired = self._expired()
        found: dict[bytes, Known | None] = {}
        with self._state.env.begin(db=self._state.episodes) as reading:
            for key in keys:
                raw = reading.get(key)
                if raw is not None and int.from_bytes(raw[:_STAMP], "big") <= expired:
                    raw = None
                found[key] = None if raw is None else Known(raw, _decode(raw[_STAMP:]))
        return found

    def commit(
        self,
        known: Mapping[bytes, Known | None],
        changed: Mapping[bytes, Episode],
        entries: Collection[bytes],
    ) -> bool:
        """Keep what became of episodes, unless one of them went on since it was read.

        Args:
            known: what the change was made from, as `read` gave it.
            changed: the episodes that went on, the least recently used first.
            entries: for the journal, in order.

        Returns:
            False where nothing was kept: read again, decide again.
        """
        state = self._state
        with state.env.begin(write=True, db=state.episodes) as writing:
            expired = self._expired()
            if any(_moved(known[key], writing.get(key), expired) for key in changed):
                return False
            for key, episode in changed.items():
                self._put(writing, key, episode, writing.get(key))
            if any(known[key] is None for key in changed):
                self._evict(writing)
            _append(writing, state.journal, entries)
        return True

    def commit_each(
        self, known: Mapping[bytes, Known | None], changed: Mapping[bytes, tuple[Episode, bytes]]
    ) -> list[bytes]:
        """Keep what became of each episode that did not go on since it was read.

        Args:
            known: what the changes were made from, as `read` gave it.
            changed: each episode, and its entry for the journal.

        Returns:
            Those that were kept.
        """
        if not changed:
            return []
        state = self._state
        kept = []
        with state.env.begin(write=True, db=state.episodes) as writing:
            expired = self._expired()
            for key, (episode, _) in changed.items():
                now = writing.get(key)
                if not _moved(known[key], now, expired):
                    self._put(writing, key, episode, now)
                    kept.append(key)
            if any(known[key] is None for key in kept):
                self._evict(writing)
            _append(writing, state.journal, [changed[key][1] for key in kept])
        return kept

    def _expired(self) -> int:
        """Nanoseconds since the epoch: an episode last used then is forgotten."""
        return time.time_ns() - self._ttl_ns

    def restore(self, key: EpisodeKey, episode: Episode) -> bool:
        """Keep an episode that was folded from telemetry, unless it is known as far already."""
        state, name = self._state, database_key(key)
        with state.env.begin(write=True, db=state.episodes) as writing:
            raw = writing.get(name)
            if raw is not None and _decode(raw[_STAMP:]).step >= episode.step:
                return False
            self._put(writing, name, episode, raw)
            self._evict(writing)
        return True

    def _put(
        self, writing: lmdb.Transaction, key: bytes, episode: Episode, old: bytes | None
    ) -> None:
        if old is not None:
            writing.delete(bytes(old[:_STAMP]) + key, db=self._state.ages)
        stamp = time.time_ns().to_bytes(_STAMP, "big")
        writing.put(key, stamp + _encode(episode))
        writing.put(stamp + key, b"", db=self._state.ages)

    def _evict(self, writing: lmdb.Transaction) -> None:
        excess = writing.stat(self._state.episodes)["entries"] - self._capacity
        cursor = writing.cursor(db=self._state.ages)
        expired = self._expired().to_bytes(_STAMP, "big")
        while cursor.first():
            name = bytes(cursor.key())
            if excess <= 0 and name[:_STAMP] > expired:
                return
            writing.delete(name[_STAMP:])
            cursor.delete()
            excess -= 1


def _moved(before: Known | None, now: bytes | None, expired: int) -> bool:
    """Whether an episode went on, or away, since it was read as `before`."""
    if before is not None:
        return now != before.raw
    return now is not None and int.from_bytes(now[:_STAMP], "big") > expired


def _append(writing: lmdb.Transaction, journal: Any, entries: Collection[bytes]) -> None:
    if not entries:
        return
    cursor = writing.cursor(db=journal)
    number = int.from_bytes(cursor.key(), "big") if cursor.last() else 0
    for entry in entries:
        number += 1
        writing.put(number.to_bytes(8, "big"), entry, db=journal, append=True)
    while cursor.first() and number - int.from_bytes(cursor.key(), "big") >= MAX_JOURNAL:
        cursor.delete()
