"""The write-ahead journal of decisions, shared by the workers, and its relay to the outbox.

Every decision enters the journal in the transaction that commits its episode
(`drl_serving.decisions.state.episode_store`). One worker at a time relays what is to be kept to the
outbox, from where it reaches PostgreSQL; delivery is at least once, and a repeated entry is stored
once. The last entries stay for the live feed.
"""

import asyncio
import datetime as dt
from collections.abc import Iterator
from itertools import islice
from uuid import UUID

import msgspec
import structlog
from filelock import FileLock, Timeout

from drl_core.policy.actions import Action
from drl_core.storage.outbox import Outbox, OutboxError
from drl_serving.decisions.schemas import JournalEntry
from drl_serving.decisions.state import log_store
from drl_serving.decisions.state.episode_store import KEPT
from drl_serving.decisions.state.log_store import DecisionRecord
from drl_serving.storage.shared_state import SharedState

LIVE = 1000
"""Entries that stay for the live feed."""
INTERVAL_S = 0.2
_GROUP = 1000
_RETRY_S = 5.0
_MARK = "journal-carried"
_log = structlog.stdlib.get_logger(__name__)
_decode = msgspec.msgpack.Decoder(JournalEntry).decode


def _unpack(value: bytes) -> JournalEntry:
    return _decode(value[1:])


class Journal:
    """The entries, by rising number.

    Args:
        state: where they are.
        outbox: where they go; None where no database is configured, then nothing is kept longer.
    """

    def __init__(self, state: SharedState, outbox: Outbox | None) -> None:
        self._state = state
        self._outbox = outbox
        self._lock = FileLock(state.path / "journal.lock", thread_local=False)

    def last(self) -> int:
        """Number of the newest entry, 0 where there is none."""
        with self._state.env.begin() as reading:
            cursor = reading.cursor(db=self._state.journal)
            return int.from_bytes(cursor.key(), "big") if cursor.last() else 0

    def after(self, number: int, limit: int) -> list[tuple[int, JournalEntry]]:
        """Entries above a number, oldest first."""
        entries = self._state.items(self._state.journal, number.to_bytes(8, "big"))
        return [
            (int.from_bytes(key, "big"), _unpack(value)) for key, value in islice(entries, limit)
        ]

    def find(self, decision_id: str) -> JournalEntry | None:
        """An entry that is still here."""
        wanted = decision_id.encode()
        for _, value in self._state.items(self._state.journal):
            if wanted in value and (entry := _unpack(value)).decision.decision_id == decision_id:
                return entry
        return None

    async def watch(self) -> None:
        """Carry entries on until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                while await asyncio.to_thread(self.carry_on) == _GROUP:
                    pass
            except OutboxError as error:  # they stay in the journal and are tried again
                _log.error("decision log not written", error=str(error))
                await asyncio.sleep(_RETRY_S)

    def carry_on(self) -> int:
        """Carry the next entries over, at most a group; gives how many were looked at.

        Raises:
            OutboxError: the disk refused; nothing was carried.
        """
        try:
            with self._lock.acquire(blocking=False):
                return self._carry_on()
        except Timeout:  # another worker does
            return 0

    def _carry_on(self) -> int:
        state, newest = self._state, self.last()
        mark = min(state.mark(_MARK), newest)
        entries = list(islice(state.items(state.journal, mark.to_bytes(8, "big")), _GROUP))
        if not entries:
            return 0
        if self._outbox is not None:
            kept = [_record(_unpack(value)) for _, value in entries if value[:1] == KEPT]
            self._outbox.append(log_store.TOPIC, [log_store.queue(one) for one in kept])
        carried = int.from_bytes(entries[-1][0], "big")
        with state.env.begin(write=True, db=state.journal) as writing:
            state.set_mark(_MARK, carried, writing)
            cursor = writing.cursor()
            oldest = min(carried, newest - LIVE)
            for _ in range(2 * _GROUP):
                if not cursor.first() or int.from_bytes(cursor.key(), "big") > oldest:
                    break
                cursor.delete()
        return len(entries)

    def newest_first(self, limit: int) -> Iterator[tuple[int, JournalEntry]]:
        """The last entries."""
        return reversed(self.after(max(0, self.last() - limit), limit))

    def newest_of(
        self, limit: int, sandbox_id: str | None = None, action: Action | None = None
    ) -> list[JournalEntry]:
        """The last decisions of a sandbox, of an action, or of both; the newest first.

        Args:
            limit: of what is given; at most the last LIVE entries are looked at.
            sandbox_id: all where it is None.
            action: all where it is None.
        """
        # found in the bytes first, since decoding is what costs
        needed = [
            text.encode() for text in (sandbox_id, None if action is None else action.label) if text
        ]
        found: list[JournalEntry] = []
        with self._state.env.begin(db=self._state.journal) as reading:
            cursor = reading.cursor()
            if not cursor.last():
                return found
            for value in islice(cursor.iterprev(keys=False), LIVE):
                if not all(part in value for part in needed):
                    continue
                entry = _unpack(value)
                if (sandbox_id is None or entry.decision.sandbox_id == sandbox_id) and (
                    action is None or entry.decision.action == action
                ):
                    found.append(entry)
                if len(found) == limit:
                    break
        return found


def _record(entry: JournalEntry) -> DecisionRecord:
    made = entry.decision
    return DecisionRecord(
        decision_id=UUID(made.decision_id),
        time=dt.datetime.fromtimestamp(entry.at_ms / 1000, dt.UTC),
        sandbox_id=made.sandbox_id,
        episode_id=made.episode_id,
        step=made.step,
        action=made.action,
        model_version=made.model_version,
        sequence=made.sequence,
        principal=entry.principal,
        record=msgspec.json.encode(entry),
    )
