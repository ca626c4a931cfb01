"""The telemetry event: one observation window of one episode; parsing, validation, sanitising.

Bytes from sandboxes, files or HTTP go in; valid `Event` structs come out. Anything else is a
`TelemetryError` that names the field and the record. Every source, the landing zone and the service
use this parser.
"""

import datetime as dt
import re
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

SCHEMA_VERSION: Literal[1] = 1
MAX_RECORD_BYTES = 1 << 20
"""A single event larger than this is refused before it is parsed."""

_FLOAT32_MAX = 3.4028234e38

Count = Annotated[float, Meta(ge=0, le=_FLOAT32_MAX)]
Signal = Annotated[float, Meta(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX)]
Name = Annotated[str, Meta(max_length=256)]
_SANDBOX_ID = r"^[A-Za-z0-9._:-]{1,128}\Z"
_SHA256 = r"^[0-9a-fA-F]{64}\Z"
SandboxId = Annotated[str, Meta(pattern=_SANDBOX_ID)]
Sha256 = Annotated[str, Meta(pattern=_SHA256)]
# The same two for `Event`, where a pattern would be searched per event: half of all parsing. The
# windows of an episode share these names, so `Event.__post_init__` checks each distinct one once.
_EventSandboxId = Annotated[str, Meta(extra_json_schema={"pattern": _SANDBOX_ID})]
_EventSha256 = Annotated[str, Meta(extra_json_schema={"pattern": _SHA256})]
EpisodeId = Annotated[str, Meta(min_length=1, max_length=256)]
EpisodeNumber = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_NUL = "text with a NUL character: a database cannot keep it"
EpochMs = Annotated[float, Meta(ge=0, le=253402300799999)]
Pid = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Timestamp = Annotated[dt.datetime, Meta(tz=True)]

SIGNALS = (
    "syscall_count",
    "file_read_count",
    "file_write_count",
    "network_connections",
    "bytes_sent",
    "bytes_received",
    "child_processes",
    "cpu_usage",
    "memory_usage",
    "registry_modification",
    "privilege_escalation_attempt",
    "code_injection_detected",
)
"""The 12 signals that the features are made of, in feature order. None means not measured."""


class Stage(StrEnum):
    """`positive`: a detector flagged it, the run looks for false positives; `negative`: passed."""

    POSITIVE = "positive"
    NEGATIVE = "negative"


class Outcome(StrEnum):
    """What the sandbox confirmed about a dispatched action; checked, never assumed."""

    APPLIED = "applied"
    ALREADY_APPLIED = "already_applied"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    UNKNOWN = "unknown"


class Process(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The observed process. Holds no command line: secrets live there."""

    name: Name | None = None
    pid: Pid | None = None
    ppid: Pid | None = None
    image_path: Annotated[str, Meta(max_length=1024)] | None = None


class Intervention(Struct, frozen=True, kw_only=True):
    """A real action that was taken after this window, with the probability it was chosen with."""

    action: Annotated[int, Meta(ge=0, le=4)]
    propensity: Annotated[float, Meta(gt=0, le=1)]
    outcome: Outcome


@lru_cache(maxsize=4096)
def _check_names(
    sandbox: str, digest: str | None, session: str | None, attack_type: str | None
) -> None:
    """Once per distinct set of names: all windows of an episode share theirs."""
    if not re.match(_SANDBOX_ID, sandbox):
        raise ValueError(f"sandbox_id is {sandbox[:140]!r}, expected `str` matching {_SANDBOX_ID}")
    if digest is not None and not re.match(_SHA256, digest):
        raise ValueError(f"artifact_sha256 is {digest[:70]!r}, expected `str` matching {_SHA256}")
    if session and "\0" in session:
        raise ValueError(f"session_id is {_NUL}")
    if attack_type and "\0" in attack_type:
        raise ValueError(f"attack_type is {_NUL}")


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One observation window. (sandbox_id, episode_id, step) is its identity.

    Counts are per window of `window_s` seconds, `cpu_usage` is percent of one core, `memory_usage`
    is MiB resident. `is_malicious`, `severity` and `attack_type` are labels: no feature reads them.
    `session_id` names the recording that the episode was cut from; evaluation splits by it.
    `isolation_level` is the level in force during the window.
    """

    episode_id: EpisodeId | EpisodeNumber
    step: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    schema_version: Literal[1] = SCHEMA_VERSION
    sandbox_id: _EventSandboxId = "default"
    stage: Stage = Stage.POSITIVE
    session_id: EpisodeId | None = None
    artifact_sha256: _EventSha256 | None = None
    timestamp: Timestamp | EpochMs | None = None
    window_s: Annotated[float, Meta(ge=0.001, le=86400)] = 1.0
    process: Process | None = None
    syscall_count: Count | None = None
    file_read_count: Count | None = None
    file_write_count: Count | None = None
    network_connections: Count | None = None
    bytes_sent: Count | None = None
    bytes_received: Count | None = None
    child_processes: Count | None = None
    cpu_usage: Count | None = None
    memory_usage: Count | None = None
    registry_modification: bool | None = None
    privilege_escalation_attempt: bool | None = None
    code_injection_detected: bool | None = None
    isolation_level: Annotated[int, Meta(ge=0, le=3)] = 0
    episode_end: bool = False
    """True on the last window if the artefact ended by itself; otherwise only the record ends."""
    extra: dict[Annotated[str, Meta(max_length=128)], Signal] | None = None
    intervention: Intervention | None = None
    is_malicious: bool | None = None
    severity: Annotated[float, Meta(ge=0, le=1)] | None = None
    attack_type: Annotated[str, Meta(max_length=128)] | None = None

    def __post_init__(self) -> None:
        _check_names(self.sandbox_id, self.artifact_sha256, self.session_id, self.attack_type)
        if self.episode_id.__class__ is str and "\0" in self.episode_id:
            raise ValueError(f"episode_id is {_NUL}")
        when = self.timestamp
        if when.__class__ is dt.datetime and not 1970 <= when.year <= 9998:
            raise ValueError(f"timestamp is {when}, expected a year from 1970 to 9998")
        if self.is_malicious is None and (self.severity is not None or self.attack_type):
            raise ValueError(
                "is_malicious is missing, but severity or attack_type is set: "
                "send all labels or none"
            )

    @property
    def key(self) -> tuple[str, str, int]:
        """The event's identity: a second event with the same key is a redelivery."""
        return self.sandbox_id, str(self.episode_id), self.step

    @property
    def timestamp_ms(self) -> int | None:
        """End of the window in epoch milliseconds, None where the source gave no time."""
        when = self.timestamp
        if isinstance(when, dt.datetime):
            return round(when.timestamp() * 1000)
        return None if when is None else round(when)


class TelemetryError(ValueError):
    """A record that is not a valid event: which field, which record, and what to send instead."""

    def __init__(self, field: str, message: str, record: int | None = None) -> None:
        self.field = field
        self.message = message
        self.record = record
        where = "" if record is None else f"record {record}: "
        super().__init__(f"{where}{field}: {message}")


class DeadLetter(Struct, frozen=True):
    """A refused record with its reason, as kept in the dead-letter file."""

    source: str
    record: int
    field: str
    reason: str
    payload: str


_decoder = msgspec.json.Decoder(Event)
_lines_decoder = msgspec.json.Decoder(list[Event])
_path = re.compile(r" - at `\$(?:\[\.*\d*\])?\.?([^`]*)`$")
_leading_field = re.compile(r"^([a-z_][a-z0-9_]*)\b(?: \S+)? is ")


def _error(cause: Exception, record: int | None) -> TelemetryError:
    text = str(cause)
    found = _path.search(text)
    message = _path.sub("", text)
    if missing := re.match(r"Object missing required field `(\w+)`", text):
        where = f"{found[1]}." if found and found[1] else ""
        return TelemetryError(where + missing[1], "is required and missing", record)
    if found and found[1]:
        return TelemetryError(found[1], message, record)
    if leading := _leading_field.match(message):
        return TelemetryError(leading[1], message, record)
    return TelemetryError("$", message, record)


def parse_event(raw: bytes, record: int | None = None) -> Event:
    """Parse and validate one JSON event.

    Raises:
        TelemetryError: naming the field, for anything that is not a valid event.
    """
    if len(raw) > MAX_RECORD_BYTES:
        raise TelemetryError(
            "$", f"{len(raw)} bytes, at most {MAX_RECORD_BYTES} are accepted", record
        )
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise _error(cause, record) from None


def validate_event(fields: dict[str, Any], record: int | None = None) -> Event:
    """Build an event from a mapping, under the same rules as `parse_event`."""
    try:
        return msgspec.convert(fields, Event)
    except msgspec.MsgspecError as cause:
        raise _error(cause, record) from None


def parse_lines(
    block: bytes, source: str = "", first_record: int = 0
) -> tuple[list[Event], list[DeadLetter]]:
    """Parse a block of JSON lines; an invalid line becomes a dead letter, the rest is parsed.

    Args:
        block: whole lines, blank ones allowed.
        source: a name for the dead letters, such as the file's.
        first_record: number of the block's first line.
    """
    try:
        if not _holds_oversized(block):
            return _decoder.decode_lines(block), []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # expected for a block with a bad line: the slow path finds which, and says why
    events: list[Event] = []
    dead: list[DeadLetter] = []
    for number, line in enumerate(block.splitlines(), first_record):
        if not line.strip():
            continue
        try:
            events.append(parse_event(line, number))
        except TelemetryError as error:
            dead.append(dead_letter(error, source, number, line))
    return events, dead


def _holds_oversized(block: bytes) -> bool:
    start = 0
    while len(block) - start > MAX_RECORD_BYTES:
        start = block.rfind(b"\n", start, start + MAX_RECORD_BYTES + 1) + 1
        if not start:
            return True
    return False


def dead_letter(error: TelemetryError, source: str, record: int, payload: bytes) -> DeadLetter:
    """The dead letter of a refused record, with the first 2 kB of its content."""
    return DeadLetter(
        source=source,
        record=record,
        field=error.field,
        reason=error.message,
        payload=payload[:2048].decode("utf-8", "backslashreplace"),
    )


def encode_event(event: Event) -> bytes:
    """One event as canonical JSON without a line end; `parse_event` gives the event back."""
    return msgspec.json.encode(event)


def encode_lines(events: Iterable[Event]) -> bytes:
    """Events as JSON lines."""
    return b"".join(msgspec.json.encode(event) + b"\n" for event in events)


_user_directory = re.compile(
    r"(?i)([a-z]:\\(?:users|documents and settings)\\|/home/|/users/)[^\\/]+"
)
_unc_host = re.compile(r"^\\\\[^\\]+")


def sanitize(event: Event) -> Event:
    """Remove user and host names from what is stored of the process."""
    process = event.process
    if process is None:
        return event
    clean = msgspec.structs.replace(
        process, name=sanitize_path(process.name), image_path=sanitize_path(process.image_path)
    )
    return event if clean == process else msgspec.structs.replace(event, process=clean)


def sanitize_path(path: str | None) -> str | None:
    """A path, or a text with paths in it, without the names of users and hosts."""
    if path is None:
        return None
    return _unc_host.sub(r"\\\\HOST", _user_directory.sub(r"\1USER", path))
