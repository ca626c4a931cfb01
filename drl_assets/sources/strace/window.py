"""Window counters: what traced processes did in one observation window, as fields of an event."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Window:
    """The counts of one observation window."""

    syscalls: int = 0
    reads: int = 0
    writes: int = 0
    connections: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    children: int = 0
    registry: bool = False
    privilege: bool = False
    injection: bool = False
    file_bytes_read: int = 0
    file_bytes_written: int = 0
    unlinks: int = 0
    renames: int = 0
    executions: int = 0
    failed_calls: int = 0
    signals: int = 0
    directories: set[str] = field(default_factory=set)

    def fields(self) -> dict[str, object]:
        """The fields of a telemetry event that come from the calls."""
        return {
            "syscall_count": self.syscalls,
            "file_read_count": self.reads,
            "file_write_count": self.writes,
            "network_connections": self.connections,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "child_processes": self.children,
            "registry_modification": self.registry,
            "privilege_escalation_attempt": self.privilege,
            "code_injection_detected": self.injection,
            "extra": {
                "file_bytes_read": self.file_bytes_read,
                "file_bytes_written": self.file_bytes_written,
                "unlinks": self.unlinks,
                "renames": self.renames,
                "executions": self.executions,
                "failed_calls": self.failed_calls,
                "signals": self.signals,
                "directories_written": len(self.directories),
            },
        }
