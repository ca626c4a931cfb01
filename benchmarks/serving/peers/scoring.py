"""What every peer does with an event: one window through the graph, by ONNX Runtime.

The graph's path comes in by `BENCH_MODEL`. A peer keeps no history, so each event is scored from
the carry before a first window: less work than the decision service has.
"""

import os
from typing import Any

import numpy as np
import onnxruntime as ort

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
    "window_s",
    "isolation_level",
)
START = np.zeros((1, 14))


def session() -> Any:
    """The graph, one thread for one request."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return ort.InferenceSession(
        os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
    )


def score(opened: Any, event: dict[str, Any]) -> dict[str, Any]:
    """An event's fields -> action and Q-values."""
    row = np.array([[event[name] for name in SIGNALS]], dtype=np.float64)
    q_values = opened.run(["q_values"], {"windows": row, "carry": START})[0][0].tolist()
    return {"action": q_values.index(max(q_values)), "q_values": q_values}
