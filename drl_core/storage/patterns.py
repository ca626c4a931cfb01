"""Attack patterns: which state a released policy took which action in, in PostgreSQL with pgvector.

An `AttackPattern` is sealed first: its metadata may name persons, processes and paths, so it is
encrypted before it is stored anywhere. Then it goes into the database directly (`upsert`, by the
asset graph) or through the outbox (`queue`, by the service; the drainer stores it with `store`).
`drl_serving.patterns.search` reads them. Features are stored in single precision, the precision of
the graph's output.
"""

import datetime as dt
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import psycopg
from msgspec import Meta, Struct, field
from pgvector import Vector
from pgvector.psycopg import register_vector

from drl_core.policy.actions import ACTION_COUNT
from drl_core.policy.features import FEATURE_COUNT
from drl_core.storage.database import CONNECT_WAIT_S, DatabaseUnavailable, connect
from drl_core.storage.encryption import Keyring, Sealed
from drl_core.storage.outbox import Outbox
from drl_core.telemetry.event import EpisodeId, SandboxId, Sha256

TOPIC = "patterns"
"""The outbox topic."""
MAX_LIMIT = 1000
"""Most patterns in one page of a search."""

_Text = Annotated[str, Meta(max_length=128, pattern="^[^\\x00]*$")]
Features = Annotated[
    list[Annotated[float, Meta(ge=0, le=1)]],
    Meta(min_length=FEATURE_COUNT, max_length=FEATURE_COUNT),
]


class AttackPattern(Struct, frozen=True, kw_only=True):
    """One decision of a released policy.

    (sandbox_id, episode_id, step, model_version) is its identity. `features` are the 30 of
    `drl_core.policy.features`, `reward` is the hindsight reward of `action`, `confidence` is the
    policy's, `time` is the end of the window. `metadata` is free-form and stored encrypted.
    """

    sandbox_id: SandboxId
    episode_id: Annotated[EpisodeId, Meta(pattern="^[^\\x00]*$")]
    step: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    model_version: _Text
    features: Features
    action: Annotated[int, Meta(ge=0, lt=ACTION_COUNT)]
    reward: float
    attack_type: _Text
    confidence: Annotated[float, Meta(ge=0, le=1)]
    time: Annotated[dt.datetime, Meta(tz=True)]
    artifact_sha256: Sha256 | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class SealedPattern(Struct, frozen=True, kw_only=True):
    """A pattern as stored: metadata encrypted, or absent where it is empty.

    `learned_at` is when it was accepted; of two with one identity the later one wins.
    """

    sandbox_id: str
    episode_id: str
    step: int
    model_version: str
    features: list[float]
    action: int
    reward: float
    attack_type: str
    confidence: float
    time: dt.datetime
    artifact_sha256: str | None
    key_id: str | None
    sealed: bytes | None
    learned_at: dt.datetime


COLUMNS = SealedPattern.__struct_fields__
KEY = ("sandbox_id", "episode_id", "step", "model_version")
CLEAR = tuple(name for name in AttackPattern.__struct_fields__ if name != "metadata")
"""Fields that are stored unencrypted."""

_VALUES = tuple(name for name in COLUMNS if name not in (*KEY, "learned_at"))
_LIST = ", ".join(f'"{name}"' for name in COLUMNS)
_NEWER = f"""
    ON CONFLICT ({", ".join(KEY)}) DO UPDATE
    SET {", ".join(f'"{name}" = excluded."{name}"' for name in (*_VALUES, "learned_at"))},
        metadata = NULL
    WHERE old.learned_at < excluded.learned_at
        AND ({", ".join(f'old."{name}"' for name in _VALUES)}, old.metadata)
        IS DISTINCT FROM ({", ".join(f'excluded."{name}"' for name in _VALUES)}, NULL)
"""  # noqa: S608  (names of our own)
_UPSERT = f"""
    INSERT INTO attack_patterns AS old ({_LIST})
    SELECT DISTINCT ON ({", ".join(KEY)}) {_LIST} FROM incoming
    ORDER BY {", ".join(KEY)}, arrival DESC {_NEWER}
"""  # noqa: S608  (names of our own)
_STORE = f"""
    INSERT INTO attack_patterns AS old ({_LIST})
    VALUES ({", ".join(f"%({name})s" for name in COLUMNS)}) {_NEWER}
"""  # noqa: S608

_BULK = 1000
_INDEX = "attack_patterns_by_features"
_INDEX_DEFINITION = f"SELECT indexdef FROM pg_indexes WHERE indexname = '{_INDEX}'"  # noqa: S608
_TYPES = {
    "sandbox_id": "text",
    "episode_id": "text",
    "step": "int4",
    "model_version": "text",
    "features": "vector",
    "action": "int2",
    "reward": "float8",
    "attack_type": "text",
    "confidence": "float8",
    "time": "timestamptz",
    "artifact_sha256": "text",
    "key_id": "text",
    "sealed": "bytea",
    "learned_at": "timestamptz",
}
_payloads = msgspec.msgpack.Decoder(SealedPattern)


def identity(pattern: AttackPattern | SealedPattern | Mapping[str, Any]) -> bytes:
    """A pattern's identity as bytes: the associated data of its encrypted metadata."""
    if isinstance(pattern, Mapping):
        return msgspec.json.encode([pattern[name] for name in KEY])
    return msgspec.json.encode([getattr(pattern, name) for name in KEY])


def seal(
    pattern: AttackPattern, keyring: Keyring, learned_at: dt.datetime | None = None
) -> SealedPattern:
    """Encrypt a pattern's metadata.

    Raises:
        msgspec.ValidationError: the pattern breaks its contract; names the field.
        EncryptionError: there is no usable key.
    """
    valid = msgspec.convert(msgspec.to_builtins(pattern), AttackPattern)
    hidden = None
    if valid.metadata:
        hidden = keyring.seal(msgspec.json.encode(valid.metadata), identity(valid))
    return SealedPattern(
        **{name: getattr(valid, name) for name in CLEAR},
        key_id=hidden.key_id if hidden else None,
        sealed=hidden.ciphertext if hidden else None,
        learned_at=learned_at or dt.datetime.now(dt.UTC),
    )


def unseal(row: Mapping[str, Any], keyring: Keyring) -> AttackPattern:
    """The pattern of a database row of `COLUMNS` and `metadata`.

    Raises:
        KeyMissing: its key is not in the keyring.
        EncryptionError: the ciphertext was changed.
    """
    metadata = row["metadata"] or {}  # unencrypted: stored by an earlier revision
    if row["sealed"] is not None:
        plain = keyring.open(Sealed(row["key_id"], row["sealed"]), identity(row))
        metadata = msgspec.json.decode(plain)
    values = {name: row[name] for name in CLEAR}
    values["features"] = [float(value) for value in row["features"].to_list()]
    return AttackPattern(**values, metadata=metadata)


def queue(pattern: SealedPattern) -> tuple[str, bytes]:
    """A pattern's key and payload for the topic `patterns` of the outbox.

    The key is a hash of the content: a redelivery changes nothing while the first one is queued.
    """
    content = msgspec.structs.astuple(pattern)[:-1]
    key = hashlib.sha256(msgspec.msgpack.encode(content)).hexdigest()
    return key, msgspec.msgpack.encode(pattern)


def payload(content: bytes) -> SealedPattern:
    """The pattern of an outbox's row.

    Raises:
        msgspec.ValidationError: it is not a pattern.
    """
    return _payloads.decode(content)


def store(connection: psycopg.Connection[Any], payloads: Sequence[bytes]) -> None:
    """Store payloads of the outbox, in order, in the connection's transaction (idempotent).

    One that is stored already, or is older than the stored one, changes nothing.
    """
    rows = []
    for content in payloads:
        values = msgspec.structs.asdict(payload(content))
        rows.append({**values, "features": Vector(values["features"])})
    register_vector(connection)
    with connection.cursor() as cursor:
        cursor.executemany(_STORE, rows)


def upsert(
    url: str,
    patterns: Iterable[AttackPattern],
    keyring: Keyring,
    wait_s: float = CONNECT_WAIT_S,
) -> int:
    """Store patterns in one transaction (idempotent upsert).

    Args:
        url: `postgresql://...`, migrated.
        patterns: any number, streamed; of several with one identity the last one wins.
        keyring: encrypts their metadata.
        wait_s: seconds to wait for the database.

    Returns:
        The number of distinct patterns, unchanged ones included.

    Raises:
        DatabaseUnavailable: no connection in that time, or it broke; nothing is stored then.
        msgspec.ValidationError: a pattern breaks its contract; nothing is stored.
    """
    learned_at = dt.datetime.now(dt.UTC)
    try:
        with connect(url, wait_s) as connection:
            register_vector(connection)
            connection.execute("LOCK TABLE attack_patterns IN SHARE ROW EXCLUSIVE MODE")
            connection.execute(
                "CREATE TEMPORARY TABLE incoming (LIKE attack_patterns, arrival serial)"
                " ON COMMIT DROP"
            )
            with (
                connection.cursor() as cursor,
                cursor.copy(f"COPY incoming ({_LIST}) FROM STDIN (FORMAT binary)") as copy,
            ):
                copy.set_types([_TYPES[name] for name in COLUMNS])
                for pattern in patterns:
                    values = msgspec.structs.asdict(seal(pattern, keyring, learned_at))
                    values["features"] = Vector(values["features"])
                    copy.write_row([values[name] for name in COLUMNS])
            stored, distinct, fresh = _counts(connection)
            bulk = fresh >= _BULK and fresh * 10 > stored
            index = connection.execute(_INDEX_DEFINITION).fetchone() if bulk else None
            if index:  # rebuilding the vector index is about 10 times cheaper than extending it
                connection.execute(f"DROP INDEX {_INDEX}")
            connection.execute(_UPSERT)
            if index:
                connection.execute(index[0])
            return distinct
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable(f"storing patterns: {error}") from error


def upsert_or_queue(
    url: str, patterns: Sequence[AttackPattern], keyring: Keyring, outbox: Outbox
) -> tuple[int, int]:
    """`upsert`; where the database is away, append to the outbox, which the service drains later.

    Returns:
        Patterns stored, and patterns queued; one of them is 0.

    Raises:
        OutboxError: neither can store them.
    """
    try:
        return upsert(url, patterns, keyring), 0
    except DatabaseUnavailable:
        rows = [queue(seal(pattern, keyring)) for pattern in patterns]
        outbox.append(TOPIC, rows)
        return 0, len(rows)


def keys_in_use(connection: psycopg.Connection[Any]) -> dict[str | None, int]:
    """How many stored patterns each key has encrypted; None is for unencrypted ones."""
    rows = connection.execute(
        "SELECT key_id, count(*) FROM attack_patterns"
        " WHERE sealed IS NOT NULL OR metadata IS NOT NULL GROUP BY key_id"
    )
    return dict(rows.fetchall())


_PAGE = f"""
    SELECT {", ".join(KEY)}, key_id, sealed, metadata FROM attack_patterns
    WHERE ({", ".join(KEY)}) > (%s, %s, %s, %s)
        AND (sealed IS NOT NULL OR metadata IS NOT NULL) AND key_id IS DISTINCT FROM %s
    ORDER BY {", ".join(KEY)} LIMIT %s FOR UPDATE
"""  # noqa: S608
_RESEAL = f"""
    UPDATE attack_patterns SET key_id = %s, sealed = %s, metadata = NULL
    WHERE ({", ".join(KEY)}) = (%s, %s, %s, %s)
"""  # noqa: S608


def reseal(
    url: str,
    keyring: Keyring,
    progress: Callable[[int, int], None] = lambda done, total: None,
    batch: int = 1000,
) -> int:
    """Re-encrypt with the newest key every stored pattern that has an older one, or none.

    Each batch is a transaction, so this may be interrupted at any time and called again.

    Args:
        url: `postgresql://...`, migrated.
        keyring: has all their keys.
        progress: called with how many are done, of how many.
        batch: rows of a transaction.

    Returns:
        How many were re-encrypted.

    Raises:
        DatabaseUnavailable: no connection, or it broke.
        KeyMissing: a pattern's key is missing; the batches before it are done.
    """
    newest = keyring.newest()
    done = 0
    last: tuple[Any, ...] = ("", "", -1, "")
    try:
        with connect(url) as connection:
            connection.autocommit = True
            total = sum(n for key, n in keys_in_use(connection).items() if key != newest)
            while True:
                with connection.transaction(), connection.cursor() as cursor:
                    rows = cursor.execute(_PAGE, [*last, newest, batch]).fetchall()
                    cursor.executemany(_RESEAL, [_resealed(row, keyring) for row in rows])
                if not rows:
                    return done
                last = rows[-1][:4]
                done += len(rows)
                progress(done, max(total, done))
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable(f"encrypting patterns: {error}") from error


def _resealed(row: tuple[Any, ...], keyring: Keyring) -> tuple[Any, ...]:
    *key, key_id, sealed, metadata = row
    who = msgspec.json.encode(key)
    plain = (
        msgspec.json.encode(metadata)
        if sealed is None
        else keyring.open(Sealed(key_id, sealed), who)
    )
    fresh = keyring.seal(plain, who)
    return fresh.key_id, fresh.ciphertext, *key


def _counts(connection: psycopg.Connection[Any]) -> tuple[int, int, int]:
    """Rows stored, distinct rows incoming, and those of them that are new to the vector index."""
    keys = ", ".join(KEY)
    row = connection.execute(
        "SELECT (SELECT count(*) FROM attack_patterns),"  # noqa: S608
        f" (SELECT count(*) FROM (SELECT DISTINCT {keys} FROM incoming)),"
        f" (SELECT count(*) FROM (SELECT {keys}, features FROM incoming"
        f" EXCEPT SELECT {keys}, features FROM attack_patterns))"
    ).fetchone()
    return row or (0, 0, 0)
