"""Enough new experiences -> a new training; one at a time."""

import json

import dagster as dg

from drl_assets.defs import jobs
from drl_assets.defs.experiences.selection import new_labelled_rows
from drl_assets.defs.resources import Project
from drl_assets.defs.telemetry.sensors import running
from drl_core.bundle import Manifest


@dg.sensor(
    job=jobs.train,
    minimum_interval_seconds=2,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def enough_experiences(
    context: dg.SensorEvaluationContext, project: Project
) -> dg.SensorResult | dg.SkipReason:
    """Asks for a training when enough labelled rows came since the last one that was asked for.

    The first model is trained from whatever there is. A challenger that was refused is not tried
    again until there is more to learn from: the cursor says how many rows the last one asked with.
    """
    if running(context.instance, jobs.train.name):
        return dg.SkipReason("a training is under way")
    cursor: dict[str, str | int] = json.loads(context.cursor or "{}")
    champion = project.champion
    learned = set(champion.batch_partitions) if champion else set[str]()
    rows, newest = new_labelled_rows(project, learned)
    asked = int(cursor.get("rows", 0)) if cursor.get("champion") == _name(champion) else 0
    needed = project.settings.retraining.min_new_experiences if champion or asked else 1
    if rows - asked < needed:
        return dg.SkipReason(f"{rows - asked} new labelled experiences, {needed} are needed")
    attempt = int(cursor.get("attempt", 0)) + 1
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(run_key=f"train-{newest}-{attempt}", tags={"drl/new_rows": str(rows)})
        ],
        cursor=json.dumps({"rows": rows, "attempt": attempt, "champion": _name(champion)}),
    )


def _name(champion: Manifest | None) -> str:
    return champion.model_version if champion else ""
