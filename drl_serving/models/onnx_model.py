"""The served model (ONNX Runtime): held to the allow-list and its golden answers, ready to run.

A verified release comes in and leaves as a `ServedModel`, which maps windows and carries to
Q-values. Here is the one soundness check of its answers as well; it fails closed.
`drl_serving.models.holder` says which models serve.
"""

import threading
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from drl_core.policy.features import Array
from drl_core.release import graph_check
from drl_core.release.errors import BundleError
from drl_core.release.manifest import INPUTS, OUTPUTS, Golden, Manifest
from drl_core.release.store import Release
from drl_serving.http.problems import Problem
from drl_serving.models.schemas import Role

GOLDEN_TOLERANCE = 1e-4
_CHUNK = 1024
"""Rows a run: it bounds the memory that large batches take, and costs nothing beside their work."""
_DTYPES: dict[str, Any] = {"q_values": np.float32, "features": np.float32}  # the rest are float64

Float32 = npt.NDArray[np.float32]


class Scores(NamedTuple):
    """What the graph says of N windows."""

    q_values: Float32
    """float32 [N, 5]"""
    features: Float32
    """float32 [N, 30]"""
    carry: Array
    """float64 [N, 14], these windows included"""


def unsound_rows(*tables: npt.NDArray[Any]) -> list[int]:
    """Rows of a model's answers from which nothing may be decided: a number is not finite.

    Args:
        tables: [N, ...] each.
    """
    # a sum of squares is finite only where all are; it may overflow, then each number is looked at
    for table in tables:
        if not isfinite(np.vdot(table, table)):
            sound = np.concatenate([np.isfinite(one) for one in tables], axis=1).all(1)
            return np.flatnonzero(~sound).tolist()
    return []


def not_finite() -> Problem:
    """For answers from which nothing may be decided."""
    return Problem(
        500,
        "model-not-finite",
        "the model answered with a number that is not finite; no action was decided",
        "Treat the artefact as undecided, and roll the model back.",
    )


class ServedModel:
    """A release that has passed every check, ready to run."""

    def __init__(self, release: Release) -> None:
        """Hold the graph to the allow-list, open it, try its golden rows, and warm it up.

        Raises:
            BundleError: `golden`, `opset`, or a reason of `drl_core.release.graph_check.check`.
        """
        self.manifest: Manifest = release.manifest
        self.key_id = release.key_id
        opset = graph_check.check(release.model)
        if opset != release.manifest.opset:
            raise BundleError("opset", f"{opset}, but the manifest says {release.manifest.opset}")
        self._session = _open(release.model)
        self._pair = _Pair(self._session)
        _check_golden(self, release.manifest.golden)

    def run(self, windows: Array, carry: Array) -> Scores:
        """Score one window of each of N episodes. Safe in any thread.

        A row's answer is the same, bit by bit, whatever other rows are run beside it: the runtime
        computes one row alone, and the last one of an odd number, by other instructions than the
        rest, so rows are always run in pairs.

        Args:
            windows: float64 [N, 14], NaN where not measured.
            carry: float64 [N, 14], of the windows before.
        """
        rows = len(windows)
        if rows == 1:
            return self._pair.run(windows, carry)
        if rows % 2:
            windows, carry = (np.concatenate([part, part[-1:]]) for part in (windows, carry))
        parts = [
            self._session.run(
                list(OUTPUTS),
                {"windows": windows[low : low + _CHUNK], "carry": carry[low : low + _CHUNK]},
            )
            for low in range(0, rows, _CHUNK)
        ]
        if len(parts) > 1:
            parts = [[np.concatenate(columns) for columns in zip(*parts, strict=True)]]
        return Scores(*(column[:rows] for column in parts[0]))


@dataclass(frozen=True, slots=True)
class Models:
    """The models of one batch of requests: one reference, swapped as a whole."""

    champion: ServedModel
    challenger: ServedModel | None = None

    def of(self, role: Role) -> ServedModel:
        """The model of a role; the champion where there is no challenger."""
        return self.challenger or self.champion if role == "challenger" else self.champion


class _Pair:
    """One row, and itself again, in arrays that the runtime reads from and writes to."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._inputs = {name: np.empty((2, width)) for name, width in INPUTS.items()}
        self._outputs = {
            name: np.empty((2, width), dtype=_DTYPES.get(name, np.float64))
            for name, width in OUTPUTS.items()
        }
        for bind, arrays in (
            (self._binding.bind_input, self._inputs),
            (self._binding.bind_output, self._outputs),
        ):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._lock = threading.Lock()

    def run(self, window: Array, carry: Array) -> Scores:
        with self._lock:
            self._inputs["windows"][:] = window
            self._inputs["carry"][:] = carry
            self._session.run_with_iobinding(self._binding)
            return Scores(*[array[:1].copy() for array in self._outputs.values()])


def _open(model: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as cause:  # its exceptions share no base class of their own
        raise BundleError("graph", f"ONNX Runtime cannot open it: {cause}") from cause


def _check_golden(model: ServedModel, golden: Golden) -> None:
    """Run the golden rows as one batch and one by one, which also warms the graph up."""
    try:
        windows = np.array(golden.windows, dtype=np.float64)  # None becomes NaN
        carry = np.array(golden.carry, dtype=np.float64)
        expected = np.array(golden.q_values, dtype=np.float64)
    except ValueError as cause:  # ragged lists
        raise BundleError("golden", f"the golden rows are no table: {cause}") from cause
    rows = len(windows)
    shapes = (rows, INPUTS["windows"]), (rows, INPUTS["carry"]), (rows, OUTPUTS["q_values"])
    if not rows or (windows.shape, carry.shape, expected.shape) != shapes:
        raise BundleError("golden", "the golden rows do not have the contract's widths")
    try:
        single = [model.run(windows[i : i + 1], carry[i : i + 1]).q_values for i in range(rows)]
        answers = (model.run(windows, carry).q_values, np.concatenate(single))
    except Exception as cause:  # a graph that fails when it runs; see `_open`
        raise BundleError("golden", f"the golden rows cannot be run: {cause}") from cause
    if any(answer.shape != expected.shape for answer in answers):
        raise BundleError("golden", "the graph's answers do not have the contract's widths")
    worst = max(float(np.abs(answer - expected).max()) for answer in answers)
    if not worst <= GOLDEN_TOLERANCE:  # a NaN is refused too
        raise BundleError(
            "golden", f"Q-values are off by {worst:.3g}, at most {GOLDEN_TOLERANCE} is accepted"
        )
