"""Reader interface: items (event, dead letter, no evidence) and streaming access to files.

A path comes in; bytes come out, unpacked where the file is gzip, in whole lines where wanted. What
a reader makes of them is an `Item`: an event, a dead letter with its reason, or the statement that
a file holds no behaviour. Reading never loads a file as a whole.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import ijson
import msgspec

from drl_core.telemetry.event import (
    MAX_RECORD_BYTES,
    DeadLetter,
    Event,
    TelemetryError,
    dead_letter,
)


class NoEvidence(msgspec.Struct, frozen=True):
    """A file without behaviour: it gives no episode, is counted and named, and is never benign."""

    source: str
    reason: str


Item = Event | DeadLetter | NoEvidence

UNREADABLE = (ijson.JSONError, OSError, EOFError, zlib.error, ValueError)
"""What opening, unpacking or parsing a damaged file raises."""

_GZIP = b"\x1f\x8b"
_READ_BYTES = 1 << 20
_SUFFIXES = {".gz", ".json", ".jsonl", ".ndjson", ".csv", ".log", ".txt", ".strace"}


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked if its content (not its name) is gzip.

    Raises:
        OSError: the file cannot be opened; reading may raise any of `UNREADABLE`.
    """
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    return cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb")


def stem(path: Path) -> str:
    """The file's name without its format suffixes, as a session id."""
    name = path.name
    while len(name) > 1 and (suffix := Path(name).suffix.lower()) in _SUFFIXES:
        name = name[: -len(suffix)]
    return name.encode("utf-8", "backslashreplace").decode()[:200]


def refuse(
    path: Path, field: str, reason: str, record: int = 0, payload: bytes = b""
) -> DeadLetter:
    """A dead letter that names the file, the record and the field."""
    source = path.name.encode("utf-8", "backslashreplace").decode()
    return dead_letter(TelemetryError(field, reason), source, record, payload)


def damaged(path: Path, cause: BaseException, record: int = 0) -> DeadLetter:
    """A dead letter for a file that cannot be read on."""
    text = str(cause).strip().splitlines()
    return refuse(path, "$", f"unreadable from here on: {text[0] if text else repr(cause)}", record)


def finite(value: Any) -> float | None:
    """A finite number from a number or its text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None


class Oversized(msgspec.Struct, frozen=True):
    """A line that is longer than a record may be; `head` is how it begins."""

    head: bytes


def line_blocks(file: IO[bytes]) -> Iterator[bytes | Oversized]:
    """Whole lines in blocks of about 1 MiB; the last line need not end in a line feed.

    A damaged gzip raises only after everything that could be unpacked has been yielded, up to its
    last whole line.
    """
    read = getattr(file, "read1", file.read)  # read() would drop what precedes the damage
    rest, skipping = b"", False
    while chunk := read(_READ_BYTES):
        if skipping:
            cut = chunk.find(b"\n") + 1
            if not cut:
                continue
            chunk, skipping = chunk[cut:], False
        rest += chunk
        cut = rest.rfind(b"\n") + 1
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
        if len(rest) > MAX_RECORD_BYTES:
            yield Oversized(rest[:2048])
            rest, skipping = b"", True
    if rest:
        yield rest
