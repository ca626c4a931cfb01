"""Experiences: the rewards of all five actions at every step, from states and labels."""

import dagster as dg

from drl_assets.defs.experiences import selection
from drl_assets.defs.partitions import batches
from drl_assets.defs.resources import Project
from drl_assets.reporting import metadata
from drl_assets.tables import continuity, transforms


@dg.asset(
    partitions_def=batches,
    deps=["telemetry_batches", "normalized_states"],
    group_name="experiences",
    kinds={"polars", "parquet"},
    owners=["team:learning"],
    code_version="1",
)
def experiences(context: dg.AssetExecutionContext, project: Project) -> dg.MaterializeResult[None]:
    """One row a step: state, the reward and terminal flag of all five actions, labels, lineage.

    Outcomes of real interventions stand in `action`, `propensity` and `outcome`.
    """
    import polars as pl

    from drl_assets.tables import episode_progress

    key, settings = context.partition_key, project.settings
    telemetry = project.tables.read("telemetry_batches", key)
    ordered = telemetry.filter(~telemetry["late"])
    states = project.tables.read("normalized_states", key).drop("batch")
    episodes = continuity.episodes_of(ordered)
    past = episode_progress.load(project.database_url, episodes, before_batch=key)
    frame = transforms.experience_frame(
        ordered, states, continuity.carries(episodes, past), settings.costs
    )
    assigned = selection.assigned_sessions(project, frame["session_id"].unique(), before=key)
    frame = transforms.hold_out(frame, settings.learning.test_share, assigned)
    path = project.tables.write("experiences", key, frame)
    train, test = frame.filter(~pl.col("held_out")), frame.filter(pl.col("held_out"))
    labelled = pl.col("is_malicious").is_not_null()
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(frame),
            "labelled_for_training": len(train.filter(labelled)),
            "labelled_held_out": len(test.filter(labelled)),
            "sessions_for_training": train["session_id"].n_unique(),
            "sessions_held_out": test["session_id"].n_unique(),
            "interventions": int(frame["action"].is_not_null().sum()),
            "terminated_episodes": int(frame["terminated"].sum()),
            "partial_episodes": int(frame["truncated"].sum()),
            "rewards": metadata.reward_table(frame),
            "costs_version": settings.costs.version,
            "path": dg.MetadataValue.path(path),
        }
    )
