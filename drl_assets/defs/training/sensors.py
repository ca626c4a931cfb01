"""Retraining sensor: enough new experiences request a training, one at a time."""

import json

import dagster as dg

from drl_assets.defs import jobs
from drl_assets.defs.experiences.selection import new_labelled_rows
from drl_assets.defs.resources import Project
from drl_assets.defs.telemetry.sensors import running
from drl_core.release.manifest import Manifest

MAX_RETRIES = 3


@dg.sensor(
    job=jobs.train,
    minimum_interval_seconds=2,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def enough_experiences(
    context: dg.SensorEvaluationContext, project: Project
) -> dg.SensorResult | dg.SkipReason:
    """Requests a training when enough labelled rows came since the last one that was requested.

    The first model is trained from whatever there is. A challenger that a gate refused is
    not tried again until there is more to learn from: the cursor says how many rows the last
    request had. A training that failed otherwise (a full disk, a database away) is requested
    again, a few times.
    """
    if running(context.instance, jobs.train.name):
        return dg.SkipReason("a training is under way")
    cursor: dict[str, str | int] = json.loads(context.cursor or "{}")
    champion = project.champion
    name = champion.model_version if champion else ""
    rows, newest, needed = demand(project, champion)
    asked = int(cursor.get("rows", 0)) if cursor.get("champion") == name else 0
    retries = int(cursor.get("retries", 0))
    if asked and retries < MAX_RETRIES and _broke(context.instance):
        asked, retries = 0, retries + 1
    elif asked:
        needed = project.settings.retraining.min_new_experiences
    if rows - asked < needed:
        return dg.SkipReason(f"{rows - asked} new labelled experiences, {needed} are needed")
    if rows > int(cursor.get("rows", 0)):
        retries = 0
    attempt = int(cursor.get("attempt", 0)) + 1
    after = {"rows": rows, "attempt": attempt, "champion": name, "retries": retries}
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(run_key=f"train-{newest}-{attempt}", tags={"drl/new_rows": str(rows)})
        ],
        cursor=json.dumps(after),
    )


def demand(project: Project, champion: Manifest | None) -> tuple[int, str, int]:
    """New labelled rows, the newest batch that has some, and how many rows a training waits for."""
    learned = set(champion.batch_partitions) if champion else set[str]()
    rows, newest = new_labelled_rows(project, learned)
    return rows, newest, project.settings.retraining.min_new_experiences if champion else 1


def _broke(instance: dg.DagsterInstance) -> bool:
    """Whether the last training failed for another reason than a gate that refused its policy."""
    last = instance.get_runs(dg.RunsFilter(job_name=jobs.train.name), limit=1)
    if not last or last[0].status is not dg.DagsterRunStatus.FAILURE:
        return False
    found = instance.get_records_for_run(
        last[0].run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
    )
    events = (record.event_log_entry.dagster_event for record in found.records)
    evaluations = (event.asset_check_evaluation_data for event in events if event)
    return not any(
        not one.passed and one.severity is dg.AssetCheckSeverity.ERROR for one in evaluations
    )
