"""JSON Web Tokens of a configured issuer, verified with its public keys by PyJWT.

Only asymmetric signatures are accepted, and each key only with the one algorithm of its type: a
token cannot choose `none`, nor have a public key taken for a shared secret.
"""

import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from drl_core.settings import Access, SettingsError
from drl_serving.access.principal import SCOPES, Principal

MAX_BYTES = 8192
"""Of a token; a longer one is refused unread."""
LEEWAY_S = 10
"""Difference of clocks that is tolerated."""
_SUBJECT = re.compile(r"[\x21-\x7e]{1,200}")
"""It is a key of the shared buckets and stands in logs."""
_CLAIMS = ["iss", "aud", "sub", "exp", "nbf"]


class TokenVerifier:
    """Verifies the tokens of one issuer.

    Args:
        settings: issuer, audience and file of keys.
        home: what a relative path of the file starts from.

    Raises:
        SettingsError: one of the three is missing, or the file holds no usable public key.
    """

    def __init__(self, settings: Access, home: Path) -> None:
        for field in ("jwt_issuer", "jwt_audience", "jwt_keys"):
            if getattr(settings, field) is None:
                raise SettingsError(f"access.{field} is missing: JWT needs issuer, audience, keys")
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._keys = _public_keys(home / Path(str(settings.jwt_keys)).expanduser())

    def verify(self, token: bytes) -> tuple[Principal, dt.datetime] | None:
        """Whose token it is and until when it is good; None for anything but a good token."""
        if len(token) > MAX_BYTES:
            return None
        try:
            claims = self._claims(token.decode("ascii"))
            until = dt.datetime.fromtimestamp(int(claims["exp"]), dt.UTC)
        except (jwt.PyJWTError, ValueError, OverflowError, OSError, RecursionError):
            return None
        subject: str = claims["sub"]
        scopes = _scopes(claims.get("scope", claims.get("scp", "")))
        if scopes is None or not _SUBJECT.fullmatch(subject):
            return None
        return Principal(f"jwt:{subject}", "jwt", scopes), until

    def _claims(self, token: str) -> dict[str, Any]:
        named = jwt.get_unverified_header(token).get("kid")
        if len(self._keys) == 1 and (named is None or None in self._keys):
            key, algorithm = next(iter(self._keys.values()))
        elif named in self._keys:
            key, algorithm = self._keys[named]
        else:
            raise jwt.InvalidTokenError("which key the token is signed with is not known")
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=self._issuer,
            audience=self._audience,
            leeway=LEEWAY_S,
            options={"require": _CLAIMS, "verify_sub": True},
        )
        return claims


def _scopes(given: object) -> frozenset[str] | None:
    """Scopes of ours among a claim's, which are separated by spaces or listed; None: malformed."""
    names = given.split() if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return SCOPES.intersection(names)


def _public_keys(path: Path) -> dict[str | None, tuple[Any, str]]:
    """Key and algorithm by key id; a PEM has no id."""
    try:
        content = path.read_bytes()
        if content.lstrip()[:1] != b"{":
            key = serialization.load_pem_public_key(content)
            return {None: (key, _algorithm(key))}
        keys: dict[str | None, tuple[Any, str]] = {}
        for entry in json.loads(content)["keys"]:
            if entry.get("use", "sig") != "sig":
                continue
            key = jwt.PyJWK.from_dict(entry).key
            keys[entry.get("kid")] = (key, _algorithm(key))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError) as cause:
        raise SettingsError(f"access.jwt_keys: {path}: {cause}") from None
    if not keys:
        raise SettingsError(f"access.jwt_keys: {path} holds no key for signatures")
    return keys


def _algorithm(key: object) -> str:
    """The one algorithm that signatures of a key are checked with."""
    match key:
        case ed25519.Ed25519PublicKey():
            return "EdDSA"
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return "ES256"
        case rsa.RSAPublicKey(key_size=size) if size >= 2048:
            return "RS256"
        case _:
            raise ValueError("public keys of Ed25519, P-256 or RSA (2048 bits or more) are used")
