import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POSITIVE: _ClassVar[Stage]
    NEGATIVE: _ClassVar[Stage]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    APPLIED: _ClassVar[Outcome]
    ALREADY_APPLIED: _ClassVar[Outcome]
    FAILED: _ClassVar[Outcome]
    TIMED_OUT: _ClassVar[Outcome]
    UNKNOWN: _ClassVar[Outcome]
POSITIVE: Stage
NEGATIVE: Stage
APPLIED: Outcome
ALREADY_APPLIED: Outcome
FAILED: Outcome
TIMED_OUT: Outcome
UNKNOWN: Outcome

class Process(_message.Message):
    __slots__ = ("name", "pid", "ppid", "image_path")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PPID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PATH_FIELD_NUMBER: _ClassVar[int]
    name: str
    pid: int
    ppid: int
    image_path: str
    def __init__(self, name: _Optional[str] = ..., pid: _Optional[int] = ..., ppid: _Optional[int] = ..., image_path: _Optional[str] = ...) -> None: ...

class Intervention(_message.Message):
    __slots__ = ("action", "propensity", "outcome")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    action: int
    propensity: float
    outcome: Outcome
    def __init__(self, action: _Optional[int] = ..., propensity: _Optional[float] = ..., outcome: _Optional[_Union[Outcome, str]] = ...) -> None: ...

class Extra(_message.Message):
    __slots__ = ("signals",)
    class SignalsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    signals: _containers.ScalarMap[str, float]
    def __init__(self, signals: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("schema_version", "sandbox_id", "stage", "episode_name", "episode_number", "session_id", "artifact_sha256", "step", "time", "epoch_ms", "window_s", "process", "syscall_count", "file_read_count", "file_write_count", "network_connections", "bytes_sent", "bytes_received", "child_processes", "cpu_usage", "memory_usage", "registry_modification", "privilege_escalation_attempt", "code_injection_detected", "isolation_level", "episode_end", "extra", "intervention", "is_malicious", "severity", "attack_type")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    EPISODE_NAME_FIELD_NUMBER: _ClassVar[int]
    EPISODE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_SHA256_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_MS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_S_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    SYSCALL_COUNT_FIELD_NUMBER: _ClassVar[int]
    FILE_READ_COUNT_FIELD_NUMBER: _ClassVar[int]
    FILE_WRITE_COUNT_FIELD_NUMBER: _ClassVar[int]
    NETWORK_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    CHILD_PROCESSES_FIELD_NUMBER: _ClassVar[int]
    CPU_USAGE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USAGE_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_MODIFICATION_FIELD_NUMBER: _ClassVar[int]
    PRIVILEGE_ESCALATION_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CODE_INJECTION_DETECTED_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_LEVEL_FIELD_NUMBER: _ClassVar[int]
    EPISODE_END_FIELD_NUMBER: _ClassVar[int]
    EXTRA_FIELD_NUMBER: _ClassVar[int]
    INTERVENTION_FIELD_NUMBER: _ClassVar[int]
    IS_MALICIOUS_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    ATTACK_TYPE_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    sandbox_id: str
    stage: Stage
    episode_name: str
    episode_number: int
    session_id: str
    artifact_sha256: str
    step: int
    time: _timestamp_pb2.Timestamp
    epoch_ms: float
    window_s: float
    process: Process
    syscall_count: float
    file_read_count: float
    file_write_count: float
    network_connections: float
    bytes_sent: float
    bytes_received: float
    child_processes: float
    cpu_usage: float
    memory_usage: float
    registry_modification: bool
    privilege_escalation_attempt: bool
    code_injection_detected: bool
    isolation_level: int
    episode_end: bool
    extra: Extra
    intervention: Intervention
    is_malicious: bool
    severity: float
    attack_type: str
    def __init__(self, schema_version: _Optional[int] = ..., sandbox_id: _Optional[str] = ..., stage: _Optional[_Union[Stage, str]] = ..., episode_name: _Optional[str] = ..., episode_number: _Optional[int] = ..., session_id: _Optional[str] = ..., artifact_sha256: _Optional[str] = ..., step: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., epoch_ms: _Optional[float] = ..., window_s: _Optional[float] = ..., process: _Optional[_Union[Process, _Mapping]] = ..., syscall_count: _Optional[float] = ..., file_read_count: _Optional[float] = ..., file_write_count: _Optional[float] = ..., network_connections: _Optional[float] = ..., bytes_sent: _Optional[float] = ..., bytes_received: _Optional[float] = ..., child_processes: _Optional[float] = ..., cpu_usage: _Optional[float] = ..., memory_usage: _Optional[float] = ..., registry_modification: _Optional[bool] = ..., privilege_escalation_attempt: _Optional[bool] = ..., code_injection_detected: _Optional[bool] = ..., isolation_level: _Optional[int] = ..., episode_end: _Optional[bool] = ..., extra: _Optional[_Union[Extra, _Mapping]] = ..., intervention: _Optional[_Union[Intervention, _Mapping]] = ..., is_malicious: _Optional[bool] = ..., severity: _Optional[float] = ..., attack_type: _Optional[str] = ...) -> None: ...

class Events(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...
