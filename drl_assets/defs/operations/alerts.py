"""Run-failure alerts: in the log, and at the webhook where one is configured."""

import json
import urllib.request

import dagster as dg

from drl_assets.defs.resources import Project


@dg.run_failure_sensor(default_status=dg.DefaultSensorStatus.RUNNING, minimum_interval_seconds=5)
def run_failed(context: dg.RunFailureSensorContext, project: Project) -> None:
    """Says which run failed and why; a webhook that cannot be reached fails the tick, visibly."""
    run = context.dagster_run
    alert = {
        "event": "run_failed",
        "job": run.job_name,
        "run_id": run.run_id,
        "partition": run.tags.get("dagster/partition"),
        "error": context.failure_event.message,
        "failed_steps": [event.step_key for event in context.get_step_failure_events()],
    }
    context.log.error(json.dumps(alert))
    alerts = project.settings.alerts
    if alerts.webhook_url is not None:
        request = urllib.request.Request(  # noqa: S310 - the operator's own address
            alerts.webhook_url,
            data=json.dumps(alert).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=alerts.timeout_s):  # noqa: S310
            pass
