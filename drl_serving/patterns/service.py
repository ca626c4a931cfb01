"""The service layer of attack patterns: stored through the outbox, searched, errors mapped.

Decisions never wait for it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence

import msgspec

from drl_core.storage import patterns as storing
from drl_core.storage.database import DatabaseUnavailable
from drl_core.storage.encryption import EncryptionError, KeyMissing
from drl_core.storage.patterns import AttackPattern
from drl_serving.http.cursor import CursorError
from drl_serving.http.problems import Problem, bad_request
from drl_serving.patterns.schemas import NewPattern
from drl_serving.patterns.search import PatternStore
from drl_serving.storage.outbox_storage import Item, Storage

MAX_PATTERNS = 1000
"""Most of one request."""
MAX_METADATA_BYTES = 64 << 10
_YEARS = range(1970, 9999)


class Patterns:
    """The patterns of a service, through its storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        database = storage.database
        self._store = None if database is None else PatternStore(database, storage.keyring)

    async def accept(self, patterns: Sequence[NewPattern]) -> int:
        """Seal patterns and make them durable; gives their number.

        Raises:
            Problem: 400 for a wrong one, 413 for too many, 503 where they cannot be kept.
            BufferFull: too many wait already.
        """
        if self._store is None:
            raise _no_database()
        if not patterns:
            raise bad_request("$", "at least one pattern is expected")
        if len(patterns) > MAX_PATTERNS:
            raise Problem(
                413,
                "too-many-records",
                f"{len(patterns)} patterns in one request, at most {MAX_PATTERNS} are accepted",
                f"Send at most {MAX_PATTERNS} patterns a request.",
            )
        with _mapped():
            rows = await asyncio.to_thread(self._sealed, patterns)
        await self._storage.submit(rows)
        return len(rows)

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[PatternStore]:
        """The store to search, for one request.

        Raises:
            Problem: 503 where no database is named, or where it does not answer.
        """
        if self._store is None:
            raise _no_database()
        with _mapped():
            yield self._store

    def _sealed(self, patterns: Sequence[NewPattern]) -> list[Item]:
        rows: list[Item] = []
        for number, pattern in enumerate(patterns):
            if pattern.time.year not in _YEARS:
                raise bad_request(f"[{number}].time", "the year is not in 1970..9998")
            if len(msgspec.json.encode(pattern.metadata)) > MAX_METADATA_BYTES:
                raise bad_request(f"[{number}].metadata", f"more than {MAX_METADATA_BYTES} bytes")
            plain = AttackPattern(**msgspec.structs.asdict(pattern))
            rows.append((storing.TOPIC, *storing.queue(storing.seal(plain, self._storage.keyring))))
        return rows


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except DatabaseUnavailable as cause:
        raise Problem(
            503,
            "database-unavailable",
            "the database of patterns does not answer; decisions are not affected",
            "Try again after the time in Retry-After; if it lasts, look at the database.",
            retry_after_s=5,
        ) from cause
    except CursorError as cause:
        raise bad_request("cursor", str(cause)) from cause
    except KeyMissing as cause:
        raise Problem(
            503,
            "encryption-key-missing",
            f"encryption key {cause.key_id} is not in the keyring of this service",
            "Put the key's file back into keys/encryption; `drl patterns keys` lists them.",
            retry_after_s=60,
        ) from cause
    except EncryptionError as cause:
        raise Problem(
            503,
            "encryption-failed",
            str(cause),
            "Compare keys/encryption with its backup, and the database with its own.",
            retry_after_s=60,
        ) from cause


def _no_database() -> Problem:
    return Problem(
        503,
        "no-database",
        "database_url is not set, so there are no patterns",
        "Set DRL_DATABASE_URL (drl up does so for its embedded database) and restart.",
        field="database_url",
        retry_after_s=60,
    )
