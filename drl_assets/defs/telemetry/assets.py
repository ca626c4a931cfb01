"""Micro-batches: landed segments -> one ordered table a batch, deduplicated (redelivery)."""

import datetime as dt

import dagster as dg

from drl_assets.defs.partitions import batches
from drl_assets.defs.resources import Project
from drl_assets.reporting import metadata
from drl_assets.tables import continuity, transforms


@dg.asset(
    partitions_def=batches,
    group_name="telemetry",
    kinds={"polars", "parquet"},
    owners=["team:detection"],
    code_version="1",
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=dt.timedelta(days=7)),
)
def telemetry_batches(
    context: dg.AssetExecutionContext, project: Project
) -> dg.MaterializeResult[None]:
    """Telemetry windows of one batch, in the order of their episodes, each once.

    The batch is sealed here, in the run, so that evaluating the landing sensor has no effect; a run
    that is started again finds it sealed and reads the same segments.
    """
    from drl_assets.tables import episode_progress

    key = context.partition_key
    project.landing.seal(key)
    table = transforms.telemetry_frame(project.landing.read(key))
    episodes = continuity.episodes_of(table.frame)
    past = episode_progress.load(project.database_url, episodes, before_batch=key)
    frame, seen_before = continuity.drop_seen(table.frame, past)
    path = project.tables.write("telemetry_batches", key, frame)
    letters = project.landing.dead_letters()
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(frame),
            "episodes": len(episodes),
            "sessions": frame["session_id"].n_unique(),
            "redelivered": table.duplicates + seen_before,
            "late": int(frame["late"].sum()),
            "gaps": int(frame["gap"].sum()),
            "unlabelled_windows": int(frame["is_malicious"].is_null().sum()),
            "dead_letters_in_landing_zone": len(letters),
            "last_dead_letters": metadata.dead_letter_table(letters[-10:]),
            "by_attack_type": metadata.attack_type_table(frame),
            "path": dg.MetadataValue.path(path),
        }
    )
