"""Asset checks on a batch of telemetry; the blocking ones keep it from the stages after."""

import dagster as dg

from drl_assets.defs.resources import Project


@dg.asset_check(asset="telemetry_batches", blocking=True)
def telemetry_schema(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Columns, types and ranges are those of the contract, and no window is there twice."""
    from drl_assets.tables import schemas

    frame = project.tables.read("telemetry_batches", context.partition_key)
    broken = schemas.violations(schemas.TELEMETRY, frame)
    return dg.AssetCheckResult(passed=not broken, metadata={"violations": broken})


@dg.asset_check(asset="telemetry_batches")
def measured_share(context: dg.AssetCheckExecutionContext, project: Project) -> dg.AssetCheckResult:
    """At least a third of the 12 signals is measured; a source of less teaches little."""
    from drl_core.telemetry.event import SIGNALS

    frame = project.tables.read("telemetry_batches", context.partition_key)
    cells = len(frame) * len(SIGNALS)
    nulls = sum(frame[name].null_count() for name in SIGNALS)
    share = 1 - nulls / cells if cells else 1.0
    return dg.AssetCheckResult(
        passed=share >= 1 / 3,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "measured_share": share,
            "never_measured": [n for n in SIGNALS if cells and frame[n].null_count() == len(frame)],
        },
    )
