"""Landing sensor: one micro-batch, a dynamic partition, and one run for all segments that wait.

A run costs seconds, so there is never a run per event or file. While a batch is being ingested the
next one gathers, which bounds the number of runs under any load. A batch whose run failed is
requested again, a few times; a batch is never skipped, since episodes go on from one to the next.
An evaluation, such as a preview in the UI, only reads: the run itself seals the batch.
"""

import json

import dagster as dg

from drl_assets.defs import jobs
from drl_assets.defs.partitions import batches
from drl_assets.defs.resources import Project

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
MAX_ATTEMPTS = 5


def running(instance: dg.DagsterInstance, job_name: str) -> bool:
    """Whether a run of a job is queued or under way."""
    filters = dg.RunsFilter(job_name=job_name, statuses=UNFINISHED)
    return bool(instance.get_run_ids(filters, limit=1))


@dg.sensor(
    job=jobs.ingest,
    minimum_interval_seconds=2,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def landed_telemetry(
    context: dg.SensorEvaluationContext, project: Project
) -> dg.SensorResult | dg.SkipReason:
    """Requests a run for the oldest batch without experiences, else for what has landed."""
    if running(context.instance, jobs.ingest.name):
        return dg.SkipReason("a batch is being ingested; what lands meanwhile waits for the next")
    cursor: dict[str, int | str] = json.loads(context.cursor or "{}")
    landing = project.landing
    unfinished = next(iter(unfinished_batches(project)), None)
    batch = landing.batch(unfinished) if unfinished else landing.pending()
    if batch is None:
        return dg.SkipReason("nothing has landed")
    attempt = int(cursor.get("attempt", 0)) + 1 if cursor.get("batch") == batch.key else 1
    if attempt > MAX_ATTEMPTS:
        return dg.SkipReason(
            f"batch {batch.key} failed {MAX_ATTEMPTS} times: see its runs, then materialise it by "
            "hand; later batches wait for it"
        )
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=f"{batch.key}-{attempt}",
                partition_key=batch.key,
                tags={"drl/events": str(batch.events)},
            )
        ],
        dynamic_partitions_requests=[batches.build_add_request([batch.key])],
        cursor=json.dumps({"batch": batch.key, "attempt": attempt}),
    )


def unfinished_batches(project: Project) -> list[str]:
    """Keys of sealed batches that have no experiences yet, oldest first."""
    done = project.tables.done("experiences")
    sealed = project.landing.keys()
    return [key for key in sealed if key not in done]
