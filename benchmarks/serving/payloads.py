"""The requests of the load: one made stream of events, in the form that each server takes.

The values are the same for all servers. A body has a placeholder for the episode, of fixed width,
so that the load generator puts a name in without encoding anything.
"""

import json
from typing import Any

import msgspec
import numpy as np

STEPS = 50
"""Windows of an episode."""
EPISODE = "EPISODE-NAME"
ROWS = 1024


class Wire(msgspec.Struct, frozen=True):
    """How to ask a server."""

    path: str
    headers: dict[str, str]
    bodies: list[str]
    """One for each step of an episode."""

    def requests(self) -> list[bytes]:
        """Whole HTTP requests."""
        return [request(self.path, self.headers, body.encode()) for body in self.bodies]


def request(path: str, headers: dict[str, str], body: bytes) -> bytes:
    """One HTTP/1.1 POST."""
    lines = {"Host": "127.0.0.1", "Content-Type": "application/json"} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def events() -> list[dict[str, Any]]:
    """The windows of an episode as JSON fields."""
    rng = np.random.default_rng(4)
    made = []
    for step in range(STEPS):
        counts = rng.gamma(1.5, (800, 40, 20, 3, 2e4, 3e4, 1)).round().tolist()
        made.append(
            {
                "sandbox_id": "bench",
                "episode_id": EPISODE,
                "step": step,
                "window_s": 1.0,
                "syscall_count": counts[0],
                "file_read_count": counts[1],
                "file_write_count": counts[2],
                "network_connections": counts[3],
                "bytes_sent": counts[4],
                "bytes_received": counts[5],
                "child_processes": counts[6],
                "cpu_usage": round(float(rng.uniform(0, 100)), 1),
                "memory_usage": round(float(rng.gamma(2.0, 60)), 1),
                "registry_modification": False,
                "privilege_escalation_attempt": bool(rng.random() < 0.02),
                "code_injection_detected": bool(rng.random() < 0.02),
                "isolation_level": 0,
            }
        )
    return made


def row(event: dict[str, Any]) -> list[float]:
    """An event's window, 14 numbers."""
    order = list(event)
    signals = [float(event[name]) for name in order[4:16]]
    return [*signals, event["window_s"], float(event["isolation_level"])]


def as_events(path: str, headers: dict[str, str]) -> Wire:
    """JSON fields."""
    return Wire(path, headers, [json.dumps(event) for event in events()])


def as_tensors(path: str, headers: dict[str, str]) -> Wire:
    """The graph's tensors in the Open Inference Protocol."""
    bodies = [tensors(np.array([row(event)]), np.zeros((1, 14))) for event in events()]
    return Wire(path, headers, bodies)


def tensors(windows: Any, carry: Any) -> str:
    """A V2 request in JSON."""
    inputs = [
        {"name": name, "shape": list(table.shape), "datatype": "FP64", "data": table.tolist()}
        for name, table in (("windows", windows), ("carry", carry))
    ]
    flat = [{**one, "data": np.ravel(one["data"]).tolist()} for one in inputs]
    return json.dumps({"inputs": flat, "outputs": [{"name": "q_values"}]})


def table() -> Any:
    """float64 [1024, 28]: windows, and the carry of as many first windows."""
    windows = np.array([row(event) for event in events()])
    repeated = np.resize(windows, (ROWS, windows.shape[1]))
    return np.ascontiguousarray(np.concatenate([repeated, np.zeros_like(repeated)], axis=1))
