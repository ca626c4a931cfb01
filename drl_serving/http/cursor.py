"""Keyset pagination: the sort key of a page's last row as an opaque cursor, and back.

A page goes on after a key, not at a number, so a row that is stored meanwhile moves nothing.
"""

import base64
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")
K = TypeVar("K", bound=Struct)


class CursorError(ValueError):
    """A cursor that no page of this listing gave."""

    def __init__(self) -> None:
        super().__init__("not a cursor of this listing; send `next` of the page before")


class Page(Struct, Generic[T], frozen=True):
    """Some of what was found, and the cursor of what follows, None where nothing does."""

    items: list[T]
    next: str | None


def encode(key: Struct) -> str:
    """The cursor of a key."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(key)).decode().rstrip("=")


def decode(cursor: str, kind: type[K]) -> K:
    """The key of a cursor.

    Raises:
        CursorError: it is not one of this kind.
    """
    try:
        content = base64.b64decode(cursor + "=" * (-len(cursor) % 4), "-_", validate=True)
        return msgspec.msgpack.decode(content, type=kind)
    except (ValueError, msgspec.MsgspecError):
        raise CursorError from None
