"""The principal: an authenticated caller's id, for limits and the audit log, and its scopes."""

from typing import Literal, get_args

from msgspec import Struct

Scope = Literal["decide", "ingest", "patterns", "review", "publish", "admin"]
SCOPES: frozenset[str] = frozenset(get_args(Scope))


class Principal(Struct, frozen=True):
    """Who sent a request."""

    id: str
    """`anonymous`, `key:<id>` or `jwt:<subject>`."""
    kind: Literal["anonymous", "key", "jwt"]
    scopes: frozenset[str]


ANONYMOUS = Principal("anonymous", "anonymous", SCOPES)
"""Everybody, where no credentials are configured and only this machine can call."""
