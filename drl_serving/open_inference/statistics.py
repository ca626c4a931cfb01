"""Inference statistics of V2 over all workers: one small mapped file, one slot for each worker.

A worker owns the first slot that it can lock; the lock goes with the process and the counts stay,
so sums only rise while the service is up, whichever workers come and go.
"""

import fcntl
import mmap
import os
import time
from pathlib import Path
from typing import Any

from msgspec import Struct

SLOTS = 65
_FIELDS = 12
_BYTES = SLOTS * _FIELDS * 8
_SUCCESS, _SUCCESS_NS, _FAIL, _FAIL_NS, _ROWS, _INPUT_NS, _INFER_NS, _OUTPUT_NS, _LAST_MS = range(9)


class Totals(Struct, frozen=True, kw_only=True):
    """Sums over all workers; durations in nanoseconds."""

    success: int
    success_ns: int
    fail: int
    fail_ns: int
    rows: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    last_inference_ms: int


class Statistics:
    """This worker's slot, and the sums."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, _BYTES)
        self._map = mmap.mmap(self._file, _BYTES)
        self._numbers = memoryview(self._map).cast("Q")
        self._slot = self._own_slot() * _FIELDS

    def _own_slot(self) -> int:
        for slot in range(SLOTS):
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
            except OSError:
                continue
            return slot
        raise RuntimeError(f"more than {SLOTS} workers share the state folder")

    def succeeded(self, rows: int, began: int, read: int, ran: int) -> None:
        """Count an answer.

        Args:
            rows: of the request.
            began, read, ran: `time.perf_counter_ns` when the request was there, when its tensors
                were, and when the model had answered.
        """
        ended = time.perf_counter_ns()
        numbers, slot = self._numbers, self._slot
        numbers[slot + _SUCCESS] += 1
        numbers[slot + _SUCCESS_NS] += ended - began
        numbers[slot + _ROWS] += rows
        numbers[slot + _INPUT_NS] += read - began
        numbers[slot + _INFER_NS] += ran - read
        numbers[slot + _OUTPUT_NS] += ended - ran
        numbers[slot + _LAST_MS] = time.time_ns() // 1_000_000

    def failed(self, began: int) -> None:
        """Count a refusal or failure that began at `time.perf_counter_ns`."""
        self._numbers[self._slot + _FAIL] += 1
        self._numbers[self._slot + _FAIL_NS] += time.perf_counter_ns() - began

    def totals(self) -> Totals:
        """Sums over all workers."""
        columns = [self._numbers[field::_FIELDS].tolist() for field in range(_FIELDS)]
        sums = [sum(column) for column in columns]
        return Totals(
            success=sums[_SUCCESS],
            success_ns=sums[_SUCCESS_NS],
            fail=sums[_FAIL],
            fail_ns=sums[_FAIL_NS],
            rows=sums[_ROWS],
            compute_input_ns=sums[_INPUT_NS],
            compute_infer_ns=sums[_INFER_NS],
            compute_output_ns=sums[_OUTPUT_NS],
            last_inference_ms=max(columns[_LAST_MS]),
        )


def describe(name: str, version: str, totals: Totals) -> dict[str, Any]:
    """The sums in the protocol's form."""

    def duration(count: int, ns: int) -> dict[str, int]:
        return {"count": count, "ns": ns}

    done = totals.success
    return {
        "model_stats": [
            {
                "name": name,
                "version": version,
                "last_inference": totals.last_inference_ms,
                "inference_count": totals.rows,
                "execution_count": done,
                "inference_stats": {
                    "success": duration(done, totals.success_ns),
                    "fail": duration(totals.fail, totals.fail_ns),
                    "queue": duration(done, 0),
                    "compute_input": duration(done, totals.compute_input_ns),
                    "compute_infer": duration(done, totals.compute_infer_ns),
                    "compute_output": duration(done, totals.compute_output_ns),
                    "cache_hit": duration(0, 0),
                    "cache_miss": duration(0, 0),
                },
                "batch_stats": [],
            }
        ]
    }
