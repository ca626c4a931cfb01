"""Queries of the decision log: journal, then outbox, then PostgreSQL; and a decision's lineage."""

import asyncio
import datetime as dt
from uuid import UUID

import msgspec

from drl_core.release.errors import BundleError
from drl_core.release.manifest import Manifest
from drl_core.release.signing_keys import trusted_keys
from drl_core.storage.database import DatabaseUnavailable
from drl_serving.decisions.schemas import (
    DecisionPage,
    Feature,
    JournalEntry,
    Lineage,
    ModelLineage,
)
from drl_serving.decisions.state import log_store
from drl_serving.decisions.state.journal import Journal
from drl_serving.decisions.state.log_store import DecisionLog
from drl_serving.http.cursor import CursorError
from drl_serving.http.problems import Problem
from drl_serving.models.holder import ModelHolder
from drl_serving.models.input_validation import WINDOW_COLUMNS
from drl_serving.storage.outbox_storage import Storage

_entry = msgspec.json.Decoder(JournalEntry).decode


class DecisionReader:
    """Reads logged decisions: the journal has the newest, then the outbox, then PostgreSQL."""

    def __init__(self, journal: Journal, storage: Storage, models: ModelHolder) -> None:
        self._journal = journal
        self._storage = storage
        self._models = models
        self._log = DecisionLog(storage.database) if storage.database else None

    async def find(self, decision_id: UUID) -> JournalEntry:
        """One decision as it was made.

        Raises:
            Problem: 404 where it is not known, 503 where the database would have to be asked.
        """
        found = await asyncio.to_thread(self._find_here, str(decision_id))
        if found is None and self._log is not None:
            try:
                record = await self._log.find(decision_id)
            except DatabaseUnavailable as error:
                raise _unavailable() from error
            found = _entry(record.record) if record else None
        if found is None:
            raise Problem(
                404,
                "unknown-decision",
                f"decision {decision_id} is not in the log",
                "It was never made, belongs to episodes that serving.decision_log_share leaves out,"
                " or was pruned.",
                field="decision_id",
            )
        return found

    def _find_here(self, decision_id: str) -> JournalEntry | None:
        found = self._journal.find(decision_id)
        if found is not None:
            return found
        row = self._storage.outbox.find(log_store.TOPIC, decision_id)
        return _entry(log_store.payload(row.payload).record) if row else None

    async def page(
        self,
        *,
        sandbox_id: str | None,
        episode_id: str | None,
        since: dt.datetime | None,
        until: dt.datetime | None,
        action: int | None,
        limit: int,
        cursor: str | None,
    ) -> DecisionPage:
        """A page of the log, newest first.

        Raises:
            Problem: 400 for a wrong cursor, 503 without the database.
        """
        if self._log is None:
            raise _unavailable()
        try:
            found = await self._log.recent(
                sandbox_id=sandbox_id,
                episode_id=episode_id,
                since=since,
                until=until,
                action=action,
                limit=limit,
                cursor=cursor,
            )
        except DatabaseUnavailable as error:
            raise _unavailable() from error
        except CursorError as error:
            raise Problem(
                400, "bad-request", f"cursor: {error}", "Send `next` of a page.", field="cursor"
            ) from None
        return DecisionPage(items=[_entry(one.record) for one in found.items], next=found.next)

    async def lineage(self, decision_id: UUID) -> Lineage:
        """A decision with its inputs, its model, and the telemetry that taught it.

        Raises:
            Problem: 404 where the decision or its release is gone.
        """
        entry = await self.find(decision_id)
        manifest = await asyncio.to_thread(self._manifest, entry.decision.model_version)
        return Lineage(
            decision=entry.decision,
            at_ms=entry.at_ms,
            principal=entry.principal,
            trace_id=entry.trace_id,
            artifact_sha256=entry.artifact_sha256,
            window=[Feature(*pair) for pair in zip(WINDOW_COLUMNS, entry.window, strict=True)],
            carry=entry.carry,
            model=msgspec.convert(
                msgspec.structs.asdict(manifest), ModelLineage, from_attributes=True
            ),
        )

    def _manifest(self, version: str) -> Manifest:
        for held in (self._models.current, self._models.challenger):
            if held is not None and held.manifest.model_version == version:
                return held.manifest
        try:
            trusted = trusted_keys(self._models.keys_path)
            return self._models.store.find(version, trusted).manifest
        except BundleError as error:
            raise Problem(
                404,
                "unknown-release",
                f"the decision's model {version} is no sound release of the store any more",
                "Look for it in a copy of the model store; `drl bundle prune` removes old ones.",
                field="model_version",
            ) from error


def _unavailable() -> Problem:
    return Problem(
        503,
        "database-unavailable",
        "the database of the decision log does not answer; decisions are not affected",
        "Set DRL_DATABASE_URL where it is not set; else try again after Retry-After.",
        retry_after_s=5,
    )
