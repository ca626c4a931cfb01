"""The served model: verified, tried, warmed up, then swapped in as one reference.

`ModelHolder` polls the model store's pointer by `stat`. A release comes in as signed files and
leaves as a `ServedModel`, which maps windows and carries to Q-values. Whatever is wrong with a
release, the old model goes on serving and a metric counts the reason.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import structlog

from drl_core.bundle import (
    INPUTS,
    OUTPUTS,
    BundleError,
    Golden,
    Manifest,
    ModelStore,
    Release,
    trusted_keys,
)
from drl_core.features import Array
from drl_core.settings import Settings
from drl_serving.metrics import Metrics

GOLDEN_TOLERANCE = 1e-4
RETRY_S = 1.0
"""Between attempts at a release that cannot be read."""
_CHUNK = 1024
"""Rows a run: it bounds the memory that large batches take, and costs nothing beside their work."""
_TYPES = {"q_values": "tensor(float)", "features": "tensor(float)"}  # the rest are doubles
_log = structlog.get_logger("drl_serving.model")

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """What the graph says of N windows."""

    q_values: Float32
    """float32 [N, 5]"""
    features: Float32
    """float32 [N, 30]"""
    carry: Array
    """float64 [N, 14], these windows included"""


class ServedModel:
    """A release that has passed every check, ready to run."""

    def __init__(self, release: Release) -> None:
        """Open the graph, hold it against the contract and its golden answers, and warm it up.

        Raises:
            BundleError: `graph` or `golden`.
        """
        self.manifest: Manifest = release.manifest
        self._session = _open(release.model)
        _check_graph(self._session)
        _check_golden(self, release.manifest.golden)

    def run(self, windows: Array, carry: Array) -> Scores:
        """Score one window of each of N episodes.

        Args:
            windows: float64 [N, 14], NaN where not measured.
            carry: float64 [N, 14], of the windows before.
        """
        if len(windows) <= _CHUNK:
            return self._run(windows, carry)
        parts = [
            self._run(windows[low : low + _CHUNK], carry[low : low + _CHUNK])
            for low in range(0, len(windows), _CHUNK)
        ]
        return Scores(
            np.concatenate([part.q_values for part in parts]),
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.carry for part in parts]),
        )

    def _run(self, windows: Array, carry: Array) -> Scores:
        return Scores(*self._session.run(list(OUTPUTS), {"windows": windows, "carry": carry}))


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


def _check_graph(session: Any) -> None:
    for kind, expected, found in (
        ("inputs", INPUTS, session.get_inputs()),
        ("outputs", OUTPUTS, session.get_outputs()),
    ):
        if sorted(node.name for node in found) != sorted(expected):
            raise BundleError(
                "graph", f"{kind} are {[n.name for n in found]}, expected {list(expected)}"
            )
        for node in found:
            wanted = _TYPES.get(node.name, "tensor(double)")
            batched = len(node.shape) == 2 and not isinstance(node.shape[0], int)
            if node.type != wanted or not batched or node.shape[1] != expected[node.name]:
                raise BundleError(
                    "graph",
                    f"{node.name} is {node.type} {node.shape}, "
                    f"expected {wanted} [batch, {expected[node.name]}]",
                )


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


class ModelHolder:
    """Holds the one served model. The sequence number of what is held never goes back."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.current: ServedModel | None = None
        self.store = ModelStore(settings.models_path)
        self.keys_path = settings.keys_path
        self._interval_s = settings.serving.reload_interval_s
        self._metrics = metrics
        self._seen: tuple[object, ...] | None = None
        self._unreadable = False

    async def watch(self) -> None:
        """Poll for new releases until cancelled."""
        while True:
            await asyncio.sleep(RETRY_S if self._unreadable else self._interval_s)
            await self.poll()

    async def poll(self) -> bool:
        """Take a new release, if there is a sound one; True where the model was swapped."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return False
        self._seen, self._unreadable = stamp, False
        try:
            model = await asyncio.to_thread(self._load)
        except BundleError as error:
            self._refuse(error.reason, error)
        except OSError as error:
            self._seen, self._unreadable = None, True  # unlike a refusal, this may heal by itself
            self._refuse("unreadable", error)
        except Exception as error:  # the task's boundary: whatever comes, the old model serves on
            self._refuse("unexpected", error)
        else:
            return self._swap(model)
        return False

    def _swap(self, model: ServedModel | None) -> bool:
        if model is None:
            return False
        self.current = model
        manifest = model.manifest
        self._metrics.model_loaded(manifest.model_version, manifest.sha256, manifest.sequence)
        _log.info("model loaded", version=manifest.model_version, sequence=manifest.sequence)
        return True

    def _refuse(self, reason: str, error: Exception) -> None:
        serving = self.current.manifest.model_version if self.current else None
        self._metrics.reloads.labels(reason).inc()
        _log.error("release refused", reason=reason, error=str(error), still_serving=serving)

    def _load(self) -> ServedModel | None:
        served = self.current.manifest if self.current else None
        release = self.store.load(
            trusted_keys(self.keys_path), after_sequence=served.sequence if served else 0
        )
        if served and release.manifest.sequence == served.sequence:
            if release.manifest != served:
                raise BundleError("sequence", f"two releases have number {served.sequence}")
            return None
        return ServedModel(release)

    def _stamp(self) -> tuple[object, ...] | None:
        """Changes with the pointer and with the trusted keys; None before the first release."""
        try:
            pointer = self.store.current_path.stat()
        except FileNotFoundError:
            return None
        trusted = self.keys_path / "trusted"
        keys = trusted.stat().st_mtime_ns if trusted.exists() else 0
        return (pointer.st_ino, pointer.st_mtime_ns, pointer.st_size, keys)
