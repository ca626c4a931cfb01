"""Authentication, authorisation and rate limits: headers in, a principal or a problem out.

Credentials that were verified are remembered by their SHA-256, so that a request costs a hash and
a look-up. All are forgotten when the file of keys changes, and each one when it expires.
"""

import datetime as dt
import hashlib
import ipaddress
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import lmdb
import structlog

from drl_core.settings import Access as AccessSettings
from drl_core.settings import Settings, SettingsError
from drl_serving.access.api_keys import ApiKeyring, KeyFile, KeyFileError
from drl_serving.access.principal import ANONYMOUS, Principal
from drl_serving.access.rate_limits import SharedBuckets, Throttle
from drl_serving.http.problems import Problem

if TYPE_CHECKING:
    from drl_serving.access.jwt_tokens import TokenVerifier

MAX_VERIFIED = 10_000
"""Credentials remembered."""
GUESSES_PER_S = 0.2
GUESSES_AT_ONCE = 10
"""Failed authentications of one address, in one worker."""
PRUNE_S = 60.0

OnRefusal = Callable[[str, str, str | None], None]
"""Called on each refusal: reason (`missing`, `credentials`, `throttled`, `scope`, `rate`), the
principal's id or `anonymous`, the client's address."""

_log = structlog.stdlib.get_logger(__name__)


class AccessControl:
    """Authenticates, authorises and limits; one of it in each worker.

    Args:
        settings: where keys and tokens come from; `settings.access` has the limits.
        env: the environment that the workers share.
        buckets: its database of rate limits.
        refused: called on each refusal, for metrics and the audit log; must not block.

    Raises:
        SettingsError: JWT is configured in part, or its keys cannot be used.
        KeyFileError: the file of API keys cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        env: lmdb.Environment,
        buckets: Any,
        refused: OnRefusal = lambda reason, who, client: None,
    ) -> None:
        self._file = KeyFile(settings.keys_path)
        self._polling = threading.Lock()
        self._stamp = _stamp(self._file)
        self._keyring = ApiKeyring(self._file.read())
        self._tokens = _verifier(settings)
        self._required = self._stamp is not None or self._tokens is not None
        self._verified: dict[bytes, tuple[Principal, float]] = {}
        self._buckets = SharedBuckets(env, buckets)
        self._guesses = Throttle(GUESSES_PER_S, GUESSES_AT_ONCE)
        self._refused = refused
        self._pruned = time.monotonic()
        self.configure(settings.access)

    def configure(self, settings: AccessSettings) -> None:
        """Take new rate limits."""
        self._rate = settings.rate_per_s
        self._burst = settings.rate_burst

    @property
    def required(self) -> bool:
        """Whether callers need credentials."""
        return self._required

    def authenticate(
        self, headers: Iterable[tuple[bytes, bytes]], client: str | None = None
    ) -> Principal:
        """Who sent a request.

        Args:
            headers: the request's, names in lower case, as ASGI gives them.
            client: the caller's address; guesses are counted by it.

        Raises:
            Problem: 401 without valid credentials, 429 after many bad ones from this address.
        """
        if not self._required:
            return ANONYMOUS
        credential = _credential(headers)
        if credential is None:
            self._refused("missing", ANONYMOUS.id, client)
            raise _unauthorized("the request has no credentials", "Bearer")
        digest = hashlib.sha256(credential).digest()
        known = self._verified.get(digest)
        if known is not None and known[1] > time.time():
            return known[0]
        self._verified.pop(digest, None)
        return self._verify(credential, digest, client)

    def key_holder(self, key_id: str, digest: str) -> Principal | None:
        """Whose API key it is, by its id and the SHA-256 of its secret, while the key is valid.

        For sessions that began with the key: what they keep of it opens nothing else.
        """
        return self._keyring.holder(key_id, digest)

    def admit(self, principal: Principal) -> None:
        """Count a request against its caller's rate limit, over all workers.

        Raises:
            Problem: 429 with Retry-After.
        """
        if self._rate <= 0:
            return
        wait = self._buckets.take(principal.id, self._rate, self._burst)
        if wait > 0:
            self._refused("rate", principal.id, None)
            raise Problem(
                429,
                "rate-limited",
                f"more than {self._rate:g} requests a second after {self._burst} at once",
                "Wait for the seconds of Retry-After, then send the request again.",
                retry_after_s=math.ceil(wait),
            )

    def require(self, principal: Principal, scope: str, client: str | None = None) -> None:
        """Let a caller go on that has a scope.

        Raises:
            Problem: 403, naming the scope.
        """
        if scope not in principal.scopes:
            self._refused("scope", principal.id, client)
            raise forbidden(scope)

    def poll(self) -> bool:
        """Reload a changed file of keys; called once a second, in any thread. True where it was.

        Where the file is gone, no key is valid any more; it does not make the service open.
        """
        if self._rate > 0 and time.monotonic() - self._pruned > PRUNE_S:
            self._pruned = time.monotonic()
            self._buckets.prune(self._rate, self._burst)
        with self._polling:  # who returns has the keys of the file, whoever read them
            stamp = _stamp(self._file)
            if stamp == self._stamp:
                return False
            self._stamp = stamp
            self._required = True
            try:
                self._keyring = ApiKeyring(self._file.read())
            except (KeyFileError, OSError) as error:
                _log.error("API keys refused, those before stay", error=str(error))
                return False
            self._verified = {}
            return True

    def _verify(self, credential: bytes, digest: bytes, client: str | None) -> Principal:
        address = _network(client)
        wait = self._guesses.wait(address)
        if wait:
            self._refused("throttled", ANONYMOUS.id, client)
            raise Problem(
                429,
                "too-many-failures",
                "too many requests with invalid credentials came from this address",
                "Wait for the seconds of Retry-After, then send valid credentials.",
                retry_after_s=wait,
            )
        # taken before the keys: what is verified with keys that `poll` is replacing is not kept
        remembered = self._verified
        found = self._keyring.verify(credential)
        if found is None and self._tokens is not None and not credential.startswith(b"drl_"):
            found = self._tokens.verify(credential)
        if found is None:
            self._guesses.count(address)
            self._refused("credentials", ANONYMOUS.id, client)
            raise _unauthorized("invalid credentials", 'Bearer error="invalid_token"')
        principal, until = found
        if len(remembered) >= MAX_VERIFIED:
            remembered.pop(next(iter(remembered)))
        remembered[digest] = (principal, _seconds(until))
        return principal


def forbidden(scope: str) -> Problem:
    """403 for a caller without a scope."""
    return Problem(
        403,
        "missing-scope",
        f"this needs the scope {scope}",
        f"Use credentials that have it: `drl keys create --name NAME --scope {scope}`.",
        headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
    )


def require_credentials(settings: Settings) -> None:
    """Refuse to listen beyond this machine where anybody could call.

    Raises:
        SettingsError: naming `serving.host`.
    """
    if is_loopback(settings.serving.host):
        return
    if not KeyFile(settings.keys_path).path.exists() and settings.access.jwt_keys is None:
        raise SettingsError(
            f"serving.host is {settings.serving.host!r} and no credentials are configured: make "
            "a key with `drl keys create`, or configure access.jwt_*, or set serving.host "
            "to 127.0.0.1"
        )
    if settings.serving.tls_certificate is None:
        _log.warning(
            "listening beyond this machine without TLS: credentials are sent in clear; "
            "set serving.tls_certificate and serving.tls_private_key, or put a proxy in front",
            host=settings.serving.host,
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _credential(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The one credential of a request; two are as good as a wrong one."""
    found: list[bytes] = []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.partition(b" ")
            found.append(rest.strip() if scheme.lower() == b"bearer" else b"?")
        elif name == b"x-api-key":
            found.append(value.strip())
    if not found:
        return None
    return found[0] if len(found) == 1 else b"?"


def _unauthorized(detail: str, challenge: str) -> Problem:
    return Problem(
        401,
        "unauthorized",
        detail,
        "Send one header: Authorization: Bearer with an API key (`drl keys create` makes one) or a "
        "token of the configured issuer, or X-API-Key with an API key.",
        headers={"WWW-Authenticate": challenge},
    )


def _verifier(settings: Settings) -> "TokenVerifier | None":
    access = settings.access
    if access.jwt_issuer or access.jwt_audience or access.jwt_keys:
        from drl_serving.access.jwt_tokens import TokenVerifier  # PyJWT takes memory

        return TokenVerifier(access, settings.home_path)
    return None


def _stamp(file: KeyFile) -> tuple[int, int, int] | None:
    try:
        found = file.path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _network(client: str | None) -> str:
    """What guesses are counted by: an address, or an IPv6 network that one caller usually has."""
    if client and ":" in client:
        try:
            return str(ipaddress.ip_network((client.partition("%")[0], 64), strict=False))
        except ValueError:
            return client
    return client or "unknown"


def _seconds(until: dt.datetime) -> float:
    return until.timestamp() if until.year < 9000 else math.inf


__all__ = ["AccessControl", "Principal", "forbidden", "is_loopback", "require_credentials"]
