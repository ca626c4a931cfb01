"""Blocking asset checks on the states of a batch."""

import dagster as dg

from drl_assets.defs.resources import Project
from drl_assets.tables import continuity, transforms


@dg.asset_check(asset="normalized_states", blocking=True)
def state_schema(context: dg.AssetCheckExecutionContext, project: Project) -> dg.AssetCheckResult:
    """Columns and types are those of the contract, one state a window."""
    from drl_assets.tables import schemas

    frame = project.tables.read("normalized_states", context.partition_key)
    broken = schemas.violations(schemas.STATES, frame)
    return dg.AssetCheckResult(passed=not broken, metadata={"violations": broken})


@dg.asset_check(asset="normalized_states", blocking=True)
def features_in_range(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Every state has 30 finite features in [0, 1]."""
    import numpy as np

    from drl_core.policy.features import FEATURE_COUNT

    frame = project.tables.read("normalized_states", context.partition_key)
    states = frame["state"].to_numpy().reshape(-1, FEATURE_COUNT)
    bad = ~(np.isfinite(states) & (states >= 0) & (states <= 1))
    return dg.AssetCheckResult(
        passed=not bad.any(), metadata={"states": len(states), "out_of_range": int(bad.sum())}
    )


@dg.asset_check(asset="normalized_states", blocking=True)
def no_label_leakage(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Permuting labels and outcomes changes no state."""
    import numpy as np

    from drl_assets.tables import episode_progress

    key = context.partition_key
    telemetry = project.tables.read("telemetry_batches", key)
    ordered = telemetry.filter(~telemetry["late"])
    unread = (*transforms.LABELS, "action", "propensity", "outcome")
    permuted = ordered.with_columns(ordered[name].shuffle(seed=0) for name in unread)
    past = episode_progress.load(
        project.database_url, continuity.episodes_of(ordered), before_batch=key
    )
    begin = continuity.carries(continuity.episodes_of(ordered), past)
    again, _ = transforms.state_frame(permuted, begin)
    stored = project.tables.read("normalized_states", key)
    same = np.array_equal(again["state"].to_numpy(), stored["state"].to_numpy())
    return dg.AssetCheckResult(passed=same, metadata={"states": len(stored)})
