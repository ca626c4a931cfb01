"""Protocol buffers: `Event` to `drl.telemetry.Event` and back, with the validation of JSON.

Bytes go in; valid events, or a `TelemetryError` that names the field, come out. A round trip leaves
an event unchanged, with its time in UTC.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from drl_core.protos import telemetry_pb2 as pb
from drl_core.telemetry.event import (
    MAX_RECORD_BYTES,
    SIGNALS,
    Event,
    TelemetryError,
    validate_event,
)

_SAME = (
    *("schema_version", "sandbox_id", "session_id", "artifact_sha256", "step", "window_s"),
    *SIGNALS,
    *("isolation_level", "episode_end", "is_malicious", "severity", "attack_type"),
)
"""Fields with one name and one type on both sides."""
_PROCESS = ("name", "pid", "ppid", "image_path")


def encode(events: Iterable[Event]) -> bytes:
    """Events as one `drl.telemetry.Events`."""
    content: bytes = pb.Events(events=map(_message, events)).SerializeToString()
    return content


def decode(content: bytes) -> Sequence[Event | TelemetryError]:
    """The events of a `drl.telemetry.Events`; for each invalid one, its error.

    Raises:
        TelemetryError: the bytes are not such a message.
    """
    try:
        message = pb.Events.FromString(content)
    except DecodeError as cause:
        raise TelemetryError("$", f"not a drl.telemetry.Events message: {cause}") from None
    return [_event(one, number) for number, one in enumerate(message.events)]


def _message(event: Event) -> pb.Event:
    message = pb.Event(
        **{name: value for name in _SAME if (value := getattr(event, name)) is not None},
        stage=pb.Stage.Value(event.stage.name),
    )
    if isinstance(event.episode_id, str):
        message.episode_name = event.episode_id
    else:
        message.episode_number = event.episode_id
    if isinstance(event.timestamp, dt.datetime):
        message.time.FromDatetime(event.timestamp)
    elif event.timestamp is not None:
        message.epoch_ms = event.timestamp
    if event.process is not None:
        message.process.SetInParent()
        for name in _PROCESS:
            if (value := getattr(event.process, name)) is not None:
                setattr(message.process, name, value)
    if event.extra is not None:
        message.extra.SetInParent()
        message.extra.signals.update(event.extra)
    if event.intervention is not None:
        made = event.intervention
        message.intervention.SetInParent()
        message.intervention.action = made.action
        message.intervention.propensity = made.propensity
        message.intervention.outcome = pb.Outcome.Value(made.outcome.name)
    return message


def _event(message: pb.Event, record: int) -> Event | TelemetryError:
    if message.ByteSize() > MAX_RECORD_BYTES:
        return TelemetryError("$", f"more than {MAX_RECORD_BYTES} bytes", record)
    try:
        return validate_event(_fields(message, record), record)
    except TelemetryError as error:
        return error


def _fields(message: pb.Event, record: int) -> dict[str, Any]:
    """The mapping that the JSON of the same event would be."""
    present = {descriptor.name: value for descriptor, value in message.ListFields()}
    fields = {name: present[name] for name in _SAME if name in present}
    fields.setdefault("step", 0)
    fields["stage"] = _name(pb.Stage, message.stage, "stage", record)
    for side, name in (("episode_name", "episode_id"), ("episode_number", "episode_id")):
        if message.HasField(side):
            fields[name] = getattr(message, side)
    if message.HasField("time"):
        try:
            fields["timestamp"] = message.time.ToDatetime(dt.UTC)
        except (ValueError, OverflowError) as cause:
            raise TelemetryError("timestamp", str(cause), record) from None
    elif message.HasField("epoch_ms"):
        fields["timestamp"] = message.epoch_ms
    if message.HasField("process"):
        process = message.process
        fields["process"] = {n: getattr(process, n) for n in _PROCESS if process.HasField(n)}
    if message.HasField("extra"):
        fields["extra"] = dict(message.extra.signals)
    if message.HasField("intervention"):
        made = message.intervention
        fields["intervention"] = {
            "action": made.action,
            "propensity": made.propensity,
            "outcome": _name(pb.Outcome, made.outcome, "intervention.outcome", record),
        }
    return fields


def _name(kind: Any, number: int, field: str, record: int) -> str:
    try:
        return str(kind.Name(number)).lower()
    except ValueError:
        raise TelemetryError(field, f"{number} is none of {kind.keys()}", record) from None
