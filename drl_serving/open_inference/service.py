"""The service layer of the Open Inference Protocol, for HTTP and gRPC alike, in plain values.

Names and versions come in and models, scores, metadata or statistics go out. The protocol sees one
model, `drl-policy`, whose versions are the releases. Unloading it makes it unavailable here in
every worker by a file under the state folder; the domain's own decisions never look there.
"""

import asyncio
import importlib.metadata
import time
from pathlib import Path
from typing import Any

from drl_core.policy.features import Array
from drl_core.release.errors import BundleError
from drl_core.release.manifest import INPUTS, OUTPUTS
from drl_core.settings import Settings
from drl_serving.access.principal import Principal
from drl_serving.audit.log import Audit
from drl_serving.http.problems import Problem
from drl_serving.models.holder import ModelHolder
from drl_serving.models.input_validation import validate
from drl_serving.models.onnx_model import Scores, ServedModel, unsound_rows
from drl_serving.open_inference.statistics import Statistics, describe

NAME = "drl-policy"
SERVER = "drl-sandbox-policy"
PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
DATATYPES = {**dict.fromkeys([*INPUTS, "carry_after"], "FP64"), "q_values": "FP32"}
DATATYPES["features"] = "FP32"
INLINE_ROWS = 64
"""Rows that are scored on the event loop, in about the time that a thread would take to start."""

_NEXT = "GET /v2/models/drl-policy describes its versions, inputs and outputs."


class Inference:
    """The protocol's operations on one worker.

    Args:
        settings: where the workers' shared files are; `serving.max_batch`.
        models: the held models.
        audit: records loads and unloads.
    """

    def __init__(self, settings: Settings, models: ModelHolder, audit: Audit) -> None:
        self.models = models
        self._audit = audit
        self.max_rows = settings.serving.max_batch
        """Rows in one request; may be changed while running."""
        self.statistics = Statistics(settings.state_path / "v2_statistics")
        self._unloaded: Path = settings.state_path / "v2_unloaded"

    async def model(self, name: str, version: str = "") -> ServedModel:
        """A model that can be asked now; the released one where no version is given.

        Raises:
            Problem: 404 unknown name or version, 503 not loaded.
        """
        self.require_name(name)
        if self._unloaded.exists():
            raise Problem(
                503,
                "model-unloaded",
                f"{NAME} is unloaded",
                f"POST /v2/repository/models/{NAME}/load loads it again.",
            )
        current = self.models.current
        if current is None:
            raise Problem(
                503, "no-model", "no released model is loaded", "Release a model.", retry_after_s=5
            )
        if not version or version == current.manifest.model_version:
            return current
        try:
            return await self.models.version(version)
        except BundleError as error:
            raise Problem(404, "unknown-version", str(error), _NEXT, field="version") from None

    def require_name(self, name: str) -> None:
        """Refuse any other model.

        Raises:
            Problem: 404.
        """
        if name != NAME:
            raise Problem(404, "unknown-model", f"there is no model {name!r}", _NEXT, field="model")

    async def ready(self, name: str, version: str = "") -> bool:
        """Whether a model can be asked now.

        Raises:
            Problem: 404.
        """
        try:
            await self.model(name, version)
        except Problem as problem:
            if problem.status == 503:
                return False
            raise
        return True

    @property
    def server_ready(self) -> bool:
        """Whether the released model is loaded."""
        return self.models.current is not None

    async def infer(self, model: ServedModel, inputs: dict[str, Array], began: int) -> Scores:
        """Score rows; few of them right here, many in a thread.

        Args:
            model: from `model`.
            inputs: float64 windows and carry, [N, 14] each.
            began: `time.perf_counter_ns` when the request was there.

        Raises:
            Problem: 400, 413 or 500.
        """
        windows, carry = inputs["windows"], inputs["carry"]
        if len(windows) > self.max_rows:
            raise Problem(
                413,
                "too-many-rows",
                f"{len(windows)} rows in one request, at most {self.max_rows} are accepted",
                f"Send at most {self.max_rows} rows a request.",
                field="windows",
            )
        read = time.perf_counter_ns()
        if len(windows) <= INLINE_ROWS:
            scores = _score(model, windows, carry)
        else:
            scores = await asyncio.to_thread(_score, model, windows, carry)
        self.statistics.succeeded(len(windows), began, read, time.perf_counter_ns())
        return scores

    def versions(self) -> list[str]:
        """Versions that are loaded, the released one first."""
        current = self.models.current
        if current is None:
            return []
        loaded = [model.manifest.model_version for model in self.models.loaded()]
        return list(dict.fromkeys([current.manifest.model_version, *loaded]))

    async def metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """The protocol's model metadata."""
        model = await self.model(name, version)
        listed = [model.manifest.model_version] if version else self.versions()
        return {
            "name": NAME,
            "versions": listed,
            "platform": PLATFORM,
            "inputs": [_tensor(column, width) for column, width in INPUTS.items()],
            "outputs": [_tensor(column, width) for column, width in OUTPUTS.items()],
        }

    async def config(self, name: str, version: str = "") -> dict[str, Any]:
        """The model's configuration, in the names that Triton's clients know."""
        await self.model(name, version)
        return {
            "name": NAME,
            "platform": PLATFORM,
            "backend": BACKEND,
            "max_batch_size": self.max_rows,
            "input": [_column(column, width) for column, width in INPUTS.items()],
            "output": [_column(column, width) for column, width in OUTPUTS.items()],
        }

    async def stats(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Counts and durations of all workers and versions, under the released version's name."""
        model = await self.model(name or NAME, version)
        return describe(NAME, model.manifest.model_version, self.statistics.totals())

    def index(self) -> list[dict[str, str]]:
        """The repository's models with their states."""
        unloaded = self._unloaded.exists()
        state = "UNAVAILABLE" if unloaded or not self.server_ready else "READY"
        reason = "unloaded" if unloaded else "" if self.server_ready else "no release is loaded"
        return [
            {"name": NAME, "version": version, "state": state, "reason": reason}
            for version in self.versions() or [""]
        ]

    async def load(self, name: str, caller: Principal, parameters: object = None) -> None:
        """Make the model available in every worker, and load a new release if there is one.

        Raises:
            Problem: 404, or 400 with parameters: what is served comes from signed releases alone.
        """
        self.require_name(name)
        if parameters:
            raise Problem(
                400,
                "parameters-refused",
                "a load takes no parameters: models come from signed releases alone",
                "Send an empty body; publish a release with `drl train` or the pipeline.",
                field="parameters",
            )
        await asyncio.to_thread(self._unloaded.unlink, missing_ok=True)
        self._audit.record("model.load", actor=caller.id, target=NAME)
        await self.models.poll()

    async def unload(self, name: str, caller: Principal) -> None:
        """Make the model unavailable in every worker; the domain's decisions go on.

        Raises:
            Problem: 404.
        """
        self.require_name(name)
        await asyncio.to_thread(self._unloaded.touch)
        self._audit.record("model.unload", actor=caller.id, target=NAME)


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of this server."""
    return {
        "name": SERVER,
        "version": importlib.metadata.version(SERVER),
        "extensions": EXTENSIONS,
    }


def _score(model: ServedModel, windows: Array, carry: Array) -> Scores:
    validate(windows, carry)
    scores = model.run(windows, carry)
    if unsound_rows(scores.q_values, scores.features, scores.carry):
        raise Problem(
            500,
            "model-not-finite",
            "the model answered with a number that is not finite",
            "Treat the rows as undecided, and roll the model back.",
        )
    return scores


def _tensor(name: str, width: int) -> dict[str, Any]:
    return {"name": name, "datatype": DATATYPES[name], "shape": [-1, width]}


def _column(name: str, width: int) -> dict[str, Any]:
    return {"name": name, "data_type": f"TYPE_{DATATYPES[name]}", "dims": [width]}
