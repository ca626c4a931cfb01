"""API keys: made, rotated and revoked on the command line, verified by the service.

A key is `drl_<id>_<secret>`: 8 hex digits that name it and 256 random bits that are shown once.
What is kept, in `<keys>/api_keys.json`, is the SHA-256 of the secret: a slow hash would protect a
password that a person chose, 256 random bits cannot be guessed from their hash.
"""

import datetime as dt
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from filelock import FileLock
from msgspec import Meta, Struct
from msgspec.structs import replace

from drl_core.files import write_atomically
from drl_serving.access.principal import SCOPES, Principal, Scope

FILE = "api_keys.json"
_FORM = re.compile(rb"drl_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
_NO_SECRET = "0" * 64

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=100)]


class KeyFileError(ValueError):
    """The file of API keys cannot be used, or has no such key."""


class ApiKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a key; times are in UTC."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}\Z")]
    name: Name
    """Whose it is, for people."""
    scopes: frozenset[Scope]
    sha256: Digest
    created: dt.datetime
    expires: dt.datetime | None = None
    revoked: dt.datetime | None = None
    previous_sha256: Digest | None = None
    """Of the secret before the last rotation, which is valid until `previous_until`."""
    previous_until: dt.datetime | None = None

    def accepts(self, digest: str, now: dt.datetime) -> dt.datetime | None:
        """Until when a secret with this digest is good; None where it is not, or no more."""
        last = self.expires or dt.datetime.max.replace(tzinfo=dt.UTC)
        same = hmac.compare_digest(self.sha256, digest)
        before = hmac.compare_digest(self.previous_sha256 or _NO_SECRET, digest)
        if before and not same and self.previous_until is not None:
            last = min(last, self.previous_until)
        elif not same:
            return None
        return last if self.revoked is None and now < last else None


class KeyFile:
    """The file of API keys of one installation."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def read(self) -> list[ApiKey]:
        """All keys, the revoked included; none where there is no file.

        Raises:
            KeyFileError: the file is not one of keys.
            OSError: it cannot be read.
        """
        if not self.path.exists():
            return []
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=list[ApiKey])
        except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
            raise KeyFileError(f"{self.path}: {cause}") from None

    def create(
        self, name: str, scopes: Iterable[str], expires: dt.datetime | None = None
    ) -> tuple[ApiKey, str]:
        """A new key and its text, which is not kept anywhere.

        Raises:
            KeyFileError: no scope, a scope that there is not, no name, an expiry that has passed.
        """
        secret = secrets.token_urlsafe(32)
        now = _now()
        if expires is not None and expires <= now:
            raise KeyFileError(f"expires: {expires.isoformat()} has passed")
        wanted = frozenset(scopes)
        if not wanted or not wanted <= SCOPES:
            raise KeyFileError(f"scope: one or more of {', '.join(sorted(SCOPES))}")
        if not 1 <= len(name) <= 100:
            raise KeyFileError("name: 1 to 100 characters")

        def add(keys: dict[str, ApiKey]) -> ApiKey:
            taken = secrets.token_hex(4)
            while taken in keys:
                taken = secrets.token_hex(4)
            return msgspec.convert(
                {
                    "id": taken,
                    "name": name,
                    "scopes": wanted,
                    "sha256": _digest(secret.encode()),
                    "created": now,
                    "expires": expires,
                },
                ApiKey,
            )

        key = self._change(add)
        return key, f"drl_{key.id}_{secret}"

    def revoke(self, key_id: str) -> ApiKey:
        """Refuse a key from now on.

        Raises:
            KeyFileError: there is no such key.
        """
        return self._change(lambda keys: replace(_known(keys, key_id), revoked=_now()))

    def rotate(self, key_id: str, grace: dt.timedelta) -> tuple[ApiKey, str]:
        """A new secret for a key; the old one is good for `grace` longer.

        Raises:
            KeyFileError: there is no such key, or it is revoked.
        """
        secret = secrets.token_urlsafe(32)

        def renew(keys: dict[str, ApiKey]) -> ApiKey:
            key = _known(keys, key_id)
            if key.revoked is not None:
                raise KeyFileError(f"{key_id} is revoked; create another key")
            return replace(
                key,
                sha256=_digest(secret.encode()),
                previous_sha256=key.sha256,
                previous_until=_now() + grace,
            )

        return self._change(renew), f"drl_{key_id}_{secret}"

    def _change(self, make: Callable[[dict[str, ApiKey]], ApiKey]) -> ApiKey:
        """Put the key that `make` gives into the file; one writer at a time."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(self.path.with_suffix(".lock"), mode=0o600):
            keys = {key.id: key for key in self.read()}
            key = make(keys)
            keys[key.id] = key
            content = msgspec.json.format(msgspec.json.encode(list(keys.values())), indent=2)
            write_atomically(self.path, content + b"\n", mode=0o600)
        return key


class ApiKeyring:
    """The keys in memory, looked up by id."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = {key.id.encode(): key for key in keys}

    def verify(self, credential: bytes) -> tuple[Principal, dt.datetime] | None:
        """Whose key it is and until when it is good; None for anything but a good key."""
        found = _FORM.fullmatch(credential)
        key = self._keys.get(found[1]) if found else None
        if found is None or key is None:
            return None
        until = key.accepts(_digest(found[2]), _now())
        return None if until is None else (_principal(key), until)

    def holder(self, key_id: str, digest: str) -> Principal | None:
        """Whose key it is that has this id and a secret with this SHA-256, while it is good."""
        key = self._keys.get(key_id.encode())
        return None if key is None or key.accepts(digest, _now()) is None else _principal(key)


def fingerprint(credential: bytes) -> tuple[str, str] | None:
    """The id of a key's text and the SHA-256 of its secret, None for what has no key's form."""
    found = _FORM.fullmatch(credential)
    return (found[1].decode(), _digest(found[2])) if found else None


def _principal(key: ApiKey) -> Principal:
    return Principal(f"key:{key.id}", "key", frozenset(key.scopes))


def _known(keys: dict[str, ApiKey], key_id: str) -> ApiKey:
    if key_id not in keys:
        raise KeyFileError(f"there is no key {key_id}; see `drl keys list`")
    return keys[key_id]


def _digest(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
