"""Session cookies of the console: an API key in, a signed cookie out, and back to its principal.

The cookie names the key and what its secret hashes to, never the secret, so every request asks the
keyring again: a session ends after 8 hours, and at once with its key. The cookie is good for
`/console` alone; the API never reads it, so a page elsewhere can do nothing there with it. Posts
of the console carry a CSRF token derived from the cookie by the same secret.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

import msgspec
from filelock import FileLock
from msgspec import Struct

from drl_core.files import write_atomically
from drl_serving.access.api_keys import fingerprint
from drl_serving.access.principal import ANONYMOUS, Principal
from drl_serving.access.service import AccessControl
from drl_serving.http.problems import Problem

COOKIE = "drl_console"
PATH = "/console"
LOGIN = "/console/login"
LIFETIME_S = 8 * 3600
FILE = "console.key"
_BYTES = 32

RawHeaders = Iterable[tuple[bytes, bytes]]


class _Session(Struct, frozen=True, array_like=True):
    key_id: str
    sha256: str
    """Of the key's secret."""
    until: int
    """Epoch seconds."""


_sessions = msgspec.msgpack.Decoder(_Session)


class ConsoleSessions:
    """Starts and verifies sessions; any worker verifies those of the others.

    Args:
        access: verifies keys.
        keys_path: folder of the secret, which is made on first use, readable by its owner alone.
        secure: whether the service speaks TLS; the cookie is then sent over nothing else.
    """

    def __init__(self, access: AccessControl, keys_path: Path, *, secure: bool) -> None:
        self._access = access
        self._path = keys_path / FILE
        self._secure = secure
        self._kept: bytes | None = None

    @property
    def required(self) -> bool:
        """Whether one has to sign in; not where nobody needs credentials."""
        return self._access.required

    def start(self, credential: str, client: str | None) -> str:
        """A new session's `Set-Cookie` header. It may write the secret: call it in a thread.

        Args:
            credential: the text of an API key.
            client: the caller's address; guesses are counted by it.

        Raises:
            Problem: 401 for anything but a good API key, 429 after many of those.
        """
        sent = credential.strip().encode()
        principal = self._access.authenticate([(b"x-api-key", sent)], client)
        found = fingerprint(sent)
        if principal.kind != "key" or found is None:
            raise Problem(
                401,
                "no-api-key",
                "this is not an API key",
                "Sign in with an API key: `drl keys create --name NAME --scope review` makes one.",
            )
        content = msgspec.msgpack.encode(_Session(*found, int(time.time()) + LIFETIME_S))
        return self._cookie(f"{_text(content)}.{_text(self._signed(content))}", LIFETIME_S)

    def end(self) -> str:
        """The `Set-Cookie` header that takes the cookie away."""
        return self._cookie("", 0)

    def principal(self, headers: RawHeaders) -> Principal:
        """Who asks for a page of the console.

        Raises:
            Problem: 303 to the sign-in without a good session; for htmx, 401 that has it go there.
        """
        if not self.required:
            return ANONYMOUS
        sent = list(headers)
        session = self._session(cookie(sent))
        found = session and self._access.key_holder(session.key_id, session.sha256)
        if not found:
            raise _sign_in(any(name == b"hx-request" for name, _ in sent))
        return found

    def token(self, headers: RawHeaders) -> str:
        """What the console's posts must carry in their field `token`."""
        return _text(self._signed(b"post " + cookie(headers).encode()))

    def check_post(self, headers: RawHeaders, token: str) -> None:
        """Let a post through that came from a page of this console.

        Raises:
            Problem: 403 for one that did not.
        """
        sent = list(headers)
        require_same_origin(sent)
        if not hmac.compare_digest(self.token(sent).encode(), token.encode()):
            raise _foreign()

    def _session(self, value: str) -> _Session | None:
        content, _, signature = value.partition(".")
        try:
            raw, signed = _bytes(content), _bytes(signature)
            if not raw or not hmac.compare_digest(self._signed(raw), signed):
                return None
            session = _sessions.decode(raw)
        except (ValueError, binascii.Error, msgspec.MsgspecError):
            return None
        return session if time.time() < session.until else None

    def _cookie(self, value: str, seconds: int) -> str:
        secure = "; Secure" if self._secure else ""
        return (
            f"{COOKIE}={value}; Path={PATH}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
        )

    def _signed(self, content: bytes) -> bytes:
        if self._kept is None:
            self._kept = self._read()
        return hmac.digest(self._kept, content, hashlib.sha256)

    def _read(self) -> bytes:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(self._path.with_name(f".{FILE}.lock"), mode=0o600):
                if not self._path.exists():
                    write_atomically(self._path, secrets.token_bytes(_BYTES), mode=0o600)
        return self._path.read_bytes()


def cookie(headers: RawHeaders) -> str:
    """The value of the console's cookie, empty where none was sent."""
    for name, value in headers:
        if name == b"cookie":
            try:
                found = SimpleCookie(value.decode("latin-1")).get(COOKIE)
            except CookieError:
                continue
            if found is not None:
                return found.value
    return ""


def require_same_origin(headers: RawHeaders) -> None:
    """Refuse a post that a browser says came from another site's page.

    Raises:
        Problem: 403.
    """
    for name, value in headers:
        if name == b"sec-fetch-site" and value not in (b"same-origin", b"none"):
            raise _foreign()


def _sign_in(by_script: bool) -> Problem:
    headers = {"HX-Redirect": LOGIN} if by_script else {"Location": LOGIN}
    return Problem(
        401 if by_script else 303,
        "sign-in",
        "the console needs a session",
        f"Sign in at {LOGIN} with an API key.",
        headers=headers,
    )


def _foreign() -> Problem:
    return Problem(
        403,
        "foreign-post",
        "this did not come from a page of this console, or its session has ended",
        "Load the page again, and do it there.",
    )


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), "-_", validate=True)
