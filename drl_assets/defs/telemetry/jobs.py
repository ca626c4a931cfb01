"""Sealing by hand: makes a dynamic partition of what has landed, where no sensor runs.

For `dagster asset materialize --partition`, `dg launch` and backfills. With the landing sensor
running it is not needed, and harmless: the sensor finds the batch and requests its run.
"""

import dagster as dg

from drl_assets.defs.partitions import batches
from drl_assets.defs.resources import Project
from drl_assets.defs.telemetry.sensors import unfinished_batches


@dg.op
def seal_batch(context: dg.OpExecutionContext, project: Project) -> list[str]:
    """Seals what has landed and adds the partition keys of all batches without experiences."""
    batch = project.landing.seal()
    context.log.info(f"sealed {batch.events} events" if batch else "nothing has landed")
    keys = unfinished_batches(project)
    context.instance.add_dynamic_partitions(str(batches.name), keys)
    for key in keys:
        context.log.info(f"next: dg launch --job ingest --partition {key}")
    return keys


@dg.job(description="Landed telemetry becomes a batch with a partition key, in the log.")
def seal_landed_telemetry() -> None:
    """The landing sensor's part, for those who materialise by hand."""
    seal_batch()
