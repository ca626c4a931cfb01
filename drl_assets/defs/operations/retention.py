"""Compaction and retention: old batches merged by day, landed segments and event logs pruned.

Partition keys of compacted batches are removed, so live keys stay below `keep_live_batches`
whatever the deployment's age. Of the event log, materialisations and checks are kept.
"""

import collections
import datetime as dt

import dagster as dg

from drl_assets.defs.partitions import batches
from drl_assets.defs.resources import Project

KEPT_EVENTS = (
    "ASSET_MATERIALIZATION",
    "ASSET_OBSERVATION",
    "ASSET_CHECK_EVALUATION",
    "ASSET_CHECK_EVALUATION_PLANNED",
    "ASSET_MATERIALIZATION_PLANNED",
)
KEEP_LOG_DAYS = 14


def compact(instance: dg.DagsterInstance, project: Project) -> int:
    """Compact all batches but the newest `keep_live_batches` that every stage is done with."""
    tables, landing = project.tables, project.landing
    done = [key for key in tables.keys("experiences") if key in set(landing.keys())]
    old = done[: -project.settings.retraining.keep_live_batches]
    by_day: dict[str, list[str]] = collections.defaultdict(list)
    for key in old:
        by_day[landing.batch(key).sealed_at[:10]].append(key)
    for day, keys in by_day.items():
        tables.compact(day, keys)
    compacted = {key for keys in tables.compacted().values() for key in keys}
    for key in sorted(compacted.intersection(instance.get_dynamic_partitions(str(batches.name)))):
        landing.discard(key)  # also of a compaction that was interrupted here
        instance.delete_dynamic_partition(str(batches.name), key)
    return len(old)


def prune_event_log(url: str, keep_days: int) -> int:
    """Delete old log rows that are neither materialisations nor checks; returns how many."""
    from drl_core.storage.database import connect

    before = dt.datetime.now(dt.UTC).replace(tzinfo=None) - dt.timedelta(days=keep_days)
    with connect(url) as connection:
        return connection.execute(
            "DELETE FROM event_logs WHERE timestamp < %s"
            " AND (dagster_event_type IS NULL OR NOT dagster_event_type = ANY(%s))",
            [before, list(KEPT_EVENTS)],
        ).rowcount


@dg.op
def compact_old_batches(context: dg.OpExecutionContext, project: Project) -> None:
    """Merges old batches into one file a day."""
    context.log.info(f"compacted {compact(context.instance, project)} batches")


@dg.op(ins={"after": dg.In(dg.Nothing)})
def prune_logs(context: dg.OpExecutionContext, project: Project) -> None:
    """Deletes old log rows; materialisations and checks stay."""
    removed = prune_event_log(project.database_url, KEEP_LOG_DAYS)
    context.log.info(f"removed {removed} log rows older than {KEEP_LOG_DAYS} days")


@dg.job(description="Compaction and retention.")
def compact_and_prune() -> None:
    """Requested nightly by the schedule."""
    prune_logs(after=compact_old_batches())


nightly = dg.ScheduleDefinition(
    name="nightly_housekeeping",
    job=compact_and_prune,
    cron_schedule="17 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
