"""The episode store: an LRU cache of running episodes in the shared state, and its commit.

An episode that is kept is the fold of its steps 0 to `step`, none missing; one that is evicted is
forgotten whole, so nothing is ever decided from part of a history. Commits use optimistic
concurrency, and an episode's change and its entry in the write-ahead journal are one transaction: a
step that two workers decide at once is decided by one of them.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

import lmdb
import msgspec
import numpy as np
from msgspec import Struct

from drl_core.policy.features import Array
from drl_core.telemetry.event import Event
from drl_serving.decisions.schemas import Decision, JournalEntry
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

    @classmethod
    def of(cls, decision: Decision, before: Array, after: Array) -> Self:
        """The episode after a step was decided, from the carry before it to the one after it."""
        carries = before.tobytes(), after.tobytes()
        return cls(decision.step, decision.features_version, *carries, _encode(decision))

    def made(self) -> Decision:
        """The decision of `step`, where it has one."""
        return _decode_decision(self.decision or b"")

    def continues(self, step: int, features_version: int) -> bool:
        """Whether a request from `step` on continues it; otherwise it is as good as unknown.

        One that was folded by other features cannot be continued; one that was restored from
        telemetry and has no decision yet may begin anew at step 0.
        """
        if self.features_version != features_version:
            return False
        return self.decision is not None or step > 0

    def carry(self) -> Array:
        """float64 [14], for the next step."""
        return np.frombuffer(self.after)

    def carry_before(self) -> Array:
        """float64 [14], for this step once more."""
        return np.frombuffer(self.before)


class EpisodeSnapshot(Struct, frozen=True, gc=False):
    """An episode as it was read: `raw` shows whether it changed since."""

    raw: bytes
    episode: Episode


class Change(Struct, frozen=True, gc=False):
    """What a request changes: kept whole or not at all."""

    episodes: Mapping[bytes, Episode]
    """Where episodes stand now, by database key, the least recently used first."""
    entries: Sequence[bytes] = ()
    """Of the journal, in order, from `pack_entry`."""


_decode: Callable[[bytes], Episode] = msgspec.msgpack.Decoder(Episode).decode
_decode_decision: Callable[[bytes], Decision] = msgspec.msgpack.Decoder(Decision).decode
_encode = msgspec.msgpack.Encoder().encode
_STAMP = 8
KEPT, PASSING = b"k", b"p"
"""First byte of an entry in the journal: whether the decision log keeps it."""


def pack_entry(entry: JournalEntry) -> bytes:
    """An entry as the journal has it: first whether it is kept, so that others need no decoding."""
    return (KEPT if entry.kept else PASSING) + _encode(entry)


def episode_key(event: Event) -> EpisodeKey:
    """The episode that an event belongs to."""
    return event.sandbox_id, str(event.episode_id)


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

    def read(self, keys: Collection[bytes]) -> dict[bytes, EpisodeSnapshot | None]:
        """Episodes by database key, in one consistent view; None for unknown and expired ones."""
        expired = self._expired()
        found: dict[bytes, EpisodeSnapshot | None] = {}
        with self._state.env.begin(db=self._state.episodes) as reading:
            for key in keys:
                raw = reading.get(key)
                if raw is not None and int.from_bytes(raw[:_STAMP], "big") <= expired:
                    raw = None
                found[key] = None if raw is None else EpisodeSnapshot(raw, _decode(raw[_STAMP:]))
        return found

    def commit(
        self, read: Mapping[bytes, EpisodeSnapshot | None], changes: Sequence[Change]
    ) -> list[bool]:
        """Keep changes in one transaction, each whole or not at all (optimistic concurrency).

        Args:
            read: what the changes were made from, as `read` gave it.
            changes: no episode is in two of them.

        Returns:
            Which were kept. Of the others an episode changed since it was read: read it again, and
            decide again.
        """
        if not any(change.episodes or change.entries for change in changes):
            return [True] * len(changes)
        state, is_new = self._state, False
        kept: list[bool] = []
        entries: list[bytes] = []
        with state.env.begin(write=True, db=state.episodes) as writing:
            expired = self._expired()
            for change in changes:
                for name in change.episodes:
                    if _moved(read[name], writing.get(name), expired):
                        kept.append(False)
                        break
                else:
                    for name, episode in change.episodes.items():
                        before = read[name]
                        is_new = is_new or before is None
                        old = before.raw if before else writing.get(name)  # one that is expired
                        self._put(writing, name, episode, old)
                    entries += change.entries
                    kept.append(True)
            if is_new:
                self._evict(writing)
            _append(writing, state.journal, entries)
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


def _moved(before: EpisodeSnapshot | None, now: bytes | None, expired: int) -> bool:
    """Whether an episode changed, or was evicted, since it was read as `before`."""
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
