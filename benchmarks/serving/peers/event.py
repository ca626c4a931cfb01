"""The event as a pydantic model, for the peers that validate by one."""

from pydantic import BaseModel, Field


class Event(BaseModel):
    """One observation window."""

    sandbox_id: str = Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")
    episode_id: str = Field(min_length=1, max_length=256)
    step: int = Field(ge=0)
    window_s: float = Field(1.0, ge=0.001, le=86400)
    syscall_count: float = Field(ge=0)
    file_read_count: float = Field(ge=0)
    file_write_count: float = Field(ge=0)
    network_connections: float = Field(ge=0)
    bytes_sent: float = Field(ge=0)
    bytes_received: float = Field(ge=0)
    child_processes: float = Field(ge=0)
    cpu_usage: float = Field(ge=0)
    memory_usage: float = Field(ge=0)
    registry_modification: bool
    privilege_escalation_attempt: bool
    code_injection_detected: bool
    isolation_level: int = Field(0, ge=0, le=3)


class Decision(BaseModel):
    """What is answered."""

    action: int
    q_values: list[float]
