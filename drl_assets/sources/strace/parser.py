"""Line parser of `strace -f -ttt` output: text comes in, a `Line` comes out.

Covers what strace 5 and 6 write: with a bare pid column (`-o FILE`), `[pid N]` (to a terminal), or
without pids (one process), calls that are interrupted by another process's line (`<unfinished ...>`
and `<... NAME resumed>`), signals, exits, `-T` times, and file descriptors with and without the
decorations of `-y` and `-yy`.
"""

import re
from enum import Enum, auto
from typing import NamedTuple

MAX_LINE_BYTES = 1 << 16
"""Longer lines are refused: no call of a log written with `-s 0` or the default comes near."""


class Kind(Enum):
    """What a line tells: a whole call, its first or second part, or a process's fate."""

    CALL = auto()
    BEGUN = auto()
    RESUMED = auto()
    EXITED = auto()
    SUPERSEDED = auto()
    SIGNAL = auto()


class Line(NamedTuple):
    """One line. `text` is the call's arguments and result, or the reason of an exit."""

    kind: Kind
    pid: int | None
    time: float
    name: str
    text: str


class Result(NamedTuple):
    """A finished call. `value` is None for `?`; `decoration` is what `-y` says of a returned fd."""

    arguments: str
    value: int | None
    decoration: str
    error: str


_PREFIX = re.compile(r"(?:\[pid +(\d{1,10})\] |(\d{1,10}) +)?(\d{1,12}\.\d{1,9}) ", re.ASCII)
_CALL = re.compile(r"([A-Za-z_][A-Za-z0-9_]*|\?\?\?)\(", re.ASCII)
_RESUMED = re.compile(r"<\.\.\. ([A-Za-z_0-9?]+) resumed>", re.ASCII)
_EXITED = re.compile(r"\+\+\+ ((?:exited with|killed by) .{1,60}) \+\+\+$")
_SUPERSEDED = re.compile(r"\+\+\+ superseded by execve in pid (\d{1,10}) \+\+\+$")
_RESULT = re.compile(
    r"(.*)\)\s+= (-?\d{1,19}|0x[0-9a-f]{1,16}|\?)"
    r"(?:<(.*)>(?: \(.*\)| <[\d.]+>)?$| ([A-Z][A-Z0-9_]*))?",
    re.ASCII | re.DOTALL,
)
_DESCRIPTOR = re.compile(r"\s*(\d{1,9})(?:<([^>]*)>?)?", re.ASCII)


def parse_line(text: str) -> Line | None:
    """One line without its line end; None where it is not a whole line of an strace log."""
    prefix = _PREFIX.match(text)
    if prefix is None:
        return None
    pid = prefix[1] or prefix[2]
    who, when, rest = (int(pid) if pid else None), float(prefix[3]), text[prefix.end() :]
    if call := _CALL.match(rest):
        body = rest[call.end() :]
        if body.endswith(("<unfinished ...>", "<detached ...>")):
            return Line(Kind.BEGUN, who, when, call[1], body.rsplit("<", 1)[0])
        if _RESULT.match(body):
            return Line(Kind.CALL, who, when, call[1], body)
        return None
    if resumed := _RESUMED.match(rest):
        return Line(Kind.RESUMED, who, when, resumed[1], rest[resumed.end() :])
    if rest.startswith("--- ") and rest.endswith(" ---"):
        return Line(Kind.SIGNAL, who, when, "", rest)
    if exited := _EXITED.match(rest):
        return Line(Kind.EXITED, who, when, "", exited[1])
    if superseded := _SUPERSEDED.match(rest):
        return Line(Kind.SUPERSEDED, who, when, "", superseded[1])
    return None


def parse_result(text: str) -> Result:
    """Arguments and result of a finished call; the last ` = ` of the text holds the result."""
    found = _RESULT.match(text)
    if found is None:
        return Result(text, None, "", "")
    return Result(found[1], _number(found[2]), found[3] or "", found[4] or "")


def descriptor(argument: str) -> tuple[int, str] | None:
    """A file descriptor argument as (number, decoration); the decoration is "" without `-y`."""
    found = _DESCRIPTOR.match(argument)
    return None if found is None else (int(found[1]), found[2] or "")


def _number(text: str) -> int | None:
    """A result: decimal, 0x for addresses, a leading 0 for the octal of umask, `?` for none."""
    if text == "?":
        return None
    octal = text[0] == "0" and text.isdigit() and "8" not in text and "9" not in text
    return int(text, 8 if octal else 16 if text.startswith("0x") else 10)
