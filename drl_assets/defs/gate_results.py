"""What a gate found, as Dagster shows it and as the release will carry it."""

from typing import TYPE_CHECKING

import dagster as dg

from drl_assets.defs.resources import Project

if TYPE_CHECKING:
    from drl_assets.learning.gates.release_gates import Verdict


def reported(project: Project, version: str, verdict: "Verdict") -> dg.AssetCheckResult:
    """Keep a verdict for the manifest of this version's release, and show it as a check."""
    from drl_assets.learning.gates import release_gates

    release_gates.record(project.gates_path(version), verdict)
    return dg.AssetCheckResult(
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity(verdict.severity),
        description=verdict.reason,
        metadata={"version": version, **verdict.figures},
    )
