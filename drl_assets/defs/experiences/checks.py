"""Asset checks on the experiences of a batch.

Training is a run of its own, which a failed check of this run cannot hold back: a batch that a
blocking check refuses is therefore marked in the tables, and nobody reads it until it is made anew.
"""

import dagster as dg

from drl_assets.defs.resources import Project


@dg.asset_check(asset="experiences", blocking=True)
def experience_schema(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Columns and types are those of the contract, one experience a window."""
    from drl_assets.tables import schemas

    frame = project.tables.read("experiences", context.partition_key)
    broken = schemas.violations(schemas.EXPERIENCES, frame)
    if broken:
        project.tables.refuse("experiences", context.partition_key, "\n".join(broken))
    return dg.AssetCheckResult(passed=not broken, metadata={"violations": broken})


@dg.asset_check(asset="experiences", blocking=True)
def no_duplicate_events(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """No window of this batch is in an earlier one: a redelivery changes nothing."""
    import polars as pl

    from drl_assets.tables.transforms import KEYS

    key = context.partition_key
    frame = project.tables.read("experiences", key).select(KEYS)
    others = project.tables.scan("experiences", without={key})
    again = (
        0
        if others is None
        else others.filter(pl.col("batch") < key)
        .select(KEYS)
        .join(frame.lazy(), on=list(KEYS), how="semi")
        .select(pl.len())
        .collect()
        .item()
    )
    if again:
        project.tables.refuse("experiences", key, f"{again} windows are in earlier batches")
    return dg.AssetCheckResult(passed=again == 0, metadata={"windows_in_earlier_batches": again})


@dg.asset_check(asset="experiences")
def both_classes(context: dg.AssetCheckExecutionContext, project: Project) -> dg.AssetCheckResult:
    """There are benign and malicious episodes; a batch of one class alone is worth a look."""
    frame = project.tables.read("experiences", context.partition_key)
    malicious = int(frame["is_malicious"].sum())
    benign = int((~frame["is_malicious"]).sum())
    return dg.AssetCheckResult(
        passed=frame.is_empty() or (malicious > 0 and benign > 0),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "malicious": malicious,
            "benign": benign,
            "unlabelled": frame["is_malicious"].null_count(),
        },
    )
