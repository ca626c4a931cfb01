"""Asset checks on the stored patterns."""

import dagster as dg

from drl_assets.defs.resources import Project, latest_version


@dg.asset_check(asset="attack_patterns")
def pattern_count(context: dg.AssetCheckExecutionContext, project: Project) -> dg.AssetCheckResult:
    """The database holds as many patterns of this model as were stored, or they wait for it."""
    from drl_core.storage import patterns
    from drl_core.storage.database import connect

    version = latest_version(context.instance, "attack_patterns")
    event = context.instance.get_latest_materialization_event(dg.AssetKey("attack_patterns"))
    if event is None or event.asset_materialization is None:
        raise dg.Failure("attack_patterns has not been materialised yet")
    stored = event.asset_materialization.metadata["dagster/row_count"].value
    with connect(project.database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM attack_patterns WHERE model_version = %s", [version]
        ).fetchone()
    found = row[0] if row else 0
    waiting = sum(
        patterns.payload(row.payload).model_version == version
        for row in project.outbox.iterate(patterns.TOPIC)
    )
    return dg.AssetCheckResult(
        passed=found <= stored <= found + waiting,
        metadata={"stored": stored, "found": found, "waiting": waiting},
    )
