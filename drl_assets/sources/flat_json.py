"""Reader of flat JSON telemetry: an array, or JSON lines; streaming, bad records are isolated.

Bytes come in, validated events and dead letters come out, in the order of the file. A wrong record
costs itself only. An array is split into its elements by a scanner of our own, because a JSON
parser stops at the first element that is not JSON and would lose the rest.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from drl_assets.sources.records import (
    UNREADABLE,
    Item,
    NoEvidence,
    Oversized,
    damaged,
    line_blocks,
    open_binary,
    refuse,
)
from drl_core.telemetry.event import (
    MAX_RECORD_BYTES,
    Event,
    Stage,
    TelemetryError,
    dead_letter,
    parse_event,
    parse_lines,
)

_BOM = b"\xef\xbb\xbf"
_NAMES = re.compile(r"\.(json|jsonl|ndjson)(\.gz)?$", re.IGNORECASE)
_EVENT_LINE = re.compile(rb'^\s*\{.*"(episode_id|step)"', re.MULTILINE)
_TOO_LARGE = f"larger than the {MAX_RECORD_BYTES} bytes that are accepted"


def sniff(head: bytes, path: Path) -> bool:
    """True where a file may be telemetry events: by its first sign, an event line, or its name."""
    text = head.removeprefix(_BOM).lstrip()
    return (
        text[:1] in (b"{", b"[") or bool(_EVENT_LINE.search(head)) or bool(_NAMES.search(path.name))
    )


def read(
    path: Path, *, sandbox_id: str | None = None, stage: Stage | None = None
) -> Iterator[Item]:
    """Events of one file; `sandbox_id` and `stage` override what the events say when given."""
    given = {name: value for name, value in (("sandbox_id", sandbox_id), ("stage", stage)) if value}
    empty = True
    for item in _read(path):
        empty = False
        yield msgspec.structs.replace(item, **given) if given and isinstance(item, Event) else item
    if empty:
        yield NoEvidence(path.name, "the file holds no record")


def _read(path: Path) -> Iterator[Item]:
    try:
        with open_binary(path) as file:
            head = file.read(4096).removeprefix(_BOM).lstrip()
        with open_binary(path) as file:
            # an object that is broken over lines is read like an array that holds only it
            pretty = head.split(b"\n", 1)[0].strip() == b"{" and not _EVENT_LINE.search(head)
            if head[:1] == b"[" or pretty:
                yield from _elements(file, path)
            else:
                yield from _lines(file, path)
    except UNREADABLE as cause:
        yield damaged(path, cause)


def _lines(file: IO[bytes], path: Path) -> Iterator[Item]:
    number = 0
    for block in line_blocks(file):
        if isinstance(block, Oversized):
            yield refuse(path, "$", _TOO_LARGE, number, block.head)
            number += 1
            continue
        text = block.removeprefix(_BOM) if number == 0 else block
        events, dead = parse_lines(text, path.name, number)
        yield from events
        yield from dead
        number += block.count(b"\n")


def _elements(file: IO[bytes], path: Path) -> Iterator[Item]:
    read_some = getattr(file, "read1", file.read)
    splitter = _Splitter()
    number, mark = 0, _BOM
    try:
        while chunk := read_some(1 << 18):
            for raw, size in splitter.feed(chunk.removeprefix(mark)):
                yield _element(raw, size, number, path)
                number += 1
            mark = b""
    finally:
        left = splitter.left()
    if left:
        yield refuse(path, "$", "truncated: the file ends inside this record", number, left)


def _element(raw: bytes, size: int, number: int, path: Path) -> Item:
    if size > MAX_RECORD_BYTES:
        return refuse(path, "$", _TOO_LARGE, number, raw)
    try:
        return parse_event(raw, number)
    except TelemetryError as error:
        return dead_letter(error, path.name, number, raw)


_TOKEN = re.compile(rb'"(?:[^"\\\n]++|\\.|\\\Z)*+("?)|[{}\[\],]', re.DOTALL)
"""A string, or a structural sign. JSON strings hold no line feed: a missing quote ends there."""


class _Splitter:
    """Cuts JSON text into its top-level records: elements of arrays, and objects outside of any.

    Holds at most one record, and of one that is too large only its beginning.
    """

    def __init__(self) -> None:
        self._in_array = False
        self._depth = 0  # inside the record
        self._record = bytearray()
        self._size = 0
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[tuple[bytes, int]]:
        """Records that this chunk completes, each with its full size in bytes."""
        data = self._rest + chunk
        begin, stop = 0, len(data)
        for token in _TOKEN.finditer(data):
            sign = token[0]
            if sign[0] == 0x22:
                if not token[1] and token.end() == len(data):
                    stop = token.start()  # the string goes on in the next chunk
                continue
            ends, included = self._follow(sign)
            if ends:
                self._take(data[begin : token.end() if included else token.start()])
                begin = token.end()
                if record := self._finish():
                    yield record
        self._take(data[begin:stop])
        self._rest = data[stop:]
        if len(self._rest) > MAX_RECORD_BYTES:  # a string too long: only where it ends matters
            self._take(self._rest)
            slashes = len(data) - len(data.rstrip(b"\\"))
            self._rest = b'"\\' if slashes % 2 else b'"'

    def left(self) -> bytes:
        """What is no complete record at the end of the text."""
        return bytes(self._record + self._rest).strip()

    def _follow(self, sign: bytes) -> tuple[bool, bool]:
        """Whether a record ends at this sign, and whether the sign belongs to it."""
        outside = self._depth == 0
        if sign == b"[" and outside and not self._in_array:
            self._in_array = True
            return True, False
        if sign in b"{[":
            self._depth += 1
            return False, False
        if sign == b",":
            return outside, False
        if sign == b"]" and outside and self._in_array:
            self._in_array = False
            return True, False
        self._depth = max(self._depth - 1, 0)
        return self._depth == 0 and not self._in_array, True

    def _take(self, part: bytes) -> None:
        self._size += len(part)
        self._record += part[: max(0, MAX_RECORD_BYTES - len(self._record))]

    def _finish(self) -> tuple[bytes, int] | None:
        raw, size = bytes(self._record).strip(), self._size
        self._record.clear()
        self._size = 0
        return (raw, size) if raw else None
