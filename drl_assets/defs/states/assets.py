"""Feature extraction: the 30 features of each window, folded on from the episode's last batch."""

import dagster as dg

from drl_assets.defs.partitions import batches
from drl_assets.defs.resources import Project
from drl_assets.reporting import metadata
from drl_assets.tables import continuity, transforms


@dg.asset(
    partitions_def=batches,
    deps=["telemetry_batches"],
    group_name="states",
    kinds={"numpy", "parquet"},
    owners=["team:detection"],
    code_version="1",
)
def normalized_states(
    context: dg.AssetExecutionContext, project: Project
) -> dg.MaterializeResult[None]:
    """The state of every window of a batch: 30 features in [0, 1]; late windows have none."""
    from drl_assets.tables import episode_progress
    from drl_core.policy.features import FEATURE_COUNT

    key, url = context.partition_key, project.database_url
    _require_previous(project, key)
    telemetry = project.tables.read("telemetry_batches", key)
    ordered = telemetry.filter(~telemetry["late"])
    past = episode_progress.load(url, continuity.episodes_of(telemetry), before_batch=key)
    episodes = continuity.episodes_of(ordered)
    states, after = transforms.state_frame(ordered, continuity.carries(episodes, past))
    ends = dict(zip(episodes, after, strict=True))
    episode_progress.save(url, key, continuity.progress_after(telemetry, past, ends, key))
    path = project.tables.write("normalized_states", key, states)
    matrix = states["state"].to_numpy().reshape(-1, FEATURE_COUNT)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(states),
            "episodes": len(episodes),
            "continued_episodes": len(past),
            "features": metadata.feature_table(matrix),
            "histograms": metadata.feature_histograms(matrix),
            "path": dg.MetadataValue.path(path),
        }
    )


def _require_previous(project: Project, key: str) -> None:
    sealed = project.landing.keys()
    earlier = [other for other in sealed if other < key]
    if earlier and earlier[-1] not in project.tables.done("normalized_states"):
        raise dg.Failure(
            f"batch {earlier[-1]} comes before {key} and has no states yet; episodes go on from "
            "one batch to the next, so materialise it first"
        )
