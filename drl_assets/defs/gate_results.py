"""Release gates as Dagster asset checks: figures are fetched, judged, recorded and shown."""

import json
from collections.abc import Mapping
from functools import cached_property
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from drl_assets.defs.experiences.selection import rows_for_training
from drl_assets.defs.resources import Project, latest_version
from drl_assets.learning.gates import verdicts
from drl_assets.learning.gates.release_gates import GATES, ReleaseGate
from drl_core.settings import Gates

if TYPE_CHECKING:
    import polars as pl

    from drl_assets.learning.learners.checkpoint import Checkpoint


class ProjectEvidence:
    """A challenger's figures as `release_gates.Evidence`, read from the project's files."""

    def __init__(self, project: Project, version: str) -> None:
        self._project, self._version = project, version
        settings = project.settings
        self.bounds: Gates = settings.gates
        self.cache: Path = settings.checkpoints_path

    @cached_property
    def checkpoint(self) -> "Checkpoint":
        """The challenger."""
        return self._load(self._version)

    @cached_property
    def champion(self) -> "Checkpoint | None":
        """The released model's checkpoint."""
        released = self._project.champion
        return None if released is None else self._load(released.model_version)

    @cached_property
    def new_rows(self) -> "pl.DataFrame | None":
        """Labelled rows that the challenger learned from and the champion did not."""
        learned = set(self.champion.batches) if self.champion else set[str]()
        return rows_for_training(self._project, set(self.checkpoint.batches), learned)

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """The table of policies."""
        found: dict[str, Any] = json.loads(
            self._project.evaluation_path(self._version).read_bytes()
        )
        return found

    @cached_property
    def parity(self) -> Mapping[str, Any]:
        """The exported graph beside the network, on 65,536 states."""
        from drl_assets.learning.export import onnx_export

        graph = self._project.onnx_path(self._version).read_bytes()
        return onnx_export.parity(self.checkpoint.network(), graph)

    def _load(self, version: str) -> "Checkpoint":
        from drl_assets.learning.learners import checkpoint

        return checkpoint.load(self._project.checkpoint_path(version))


def check_of(gate: ReleaseGate) -> dg.AssetChecksDefinition:
    """The blocking asset check of a gate; a WARN lets the challenger through."""

    @dg.asset_check(
        asset=gate.asset, name=gate.name, description=cleandoc(gate.description), blocking=True
    )
    def check(context: dg.AssetCheckExecutionContext, project: Project) -> dg.AssetCheckResult:
        version = latest_version(context.instance, gate.asset)
        verdict = gate.judge(ProjectEvidence(project, version))
        verdicts.record(project.gates_path(version), gate.name, verdict)
        return dg.AssetCheckResult(
            passed=verdict.passed,
            severity=dg.AssetCheckSeverity(verdict.severity),
            description=verdict.reason,
            metadata={"version": version, **verdict.figures},
        )

    return check


def checks_of(*assets: str) -> list[dg.AssetChecksDefinition]:
    """The checks of every gate that judges one of these assets."""
    return [check_of(gate) for gate in GATES if gate.asset in assets]
