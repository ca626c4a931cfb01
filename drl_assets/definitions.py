"""The code location: everything that Dagster runs, in the order of the data."""

import dagster as dg

from drl_assets.defs import jobs
from drl_assets.defs.experiences import assets as experiences
from drl_assets.defs.experiences import checks as experience_checks
from drl_assets.defs.models import assets as models
from drl_assets.defs.models import checks as model_checks
from drl_assets.defs.operations import alerts, retention
from drl_assets.defs.patterns import assets as patterns
from drl_assets.defs.patterns import checks as pattern_checks
from drl_assets.defs.resources import Project
from drl_assets.defs.states import assets as states
from drl_assets.defs.states import checks as state_checks
from drl_assets.defs.telemetry import assets as telemetry
from drl_assets.defs.telemetry import checks as telemetry_checks
from drl_assets.defs.telemetry import sensors as telemetry_sensors
from drl_assets.defs.training import assets as training
from drl_assets.defs.training import checks as training_checks
from drl_assets.defs.training import sensors as training_sensors

defs = dg.Definitions(
    assets=dg.load_assets_from_modules(
        [telemetry, states, experiences, training, models, patterns]
    ),
    asset_checks=dg.load_asset_checks_from_modules(
        [
            telemetry_checks,
            state_checks,
            experience_checks,
            training_checks,
            model_checks,
            pattern_checks,
        ]
    ),
    jobs=[jobs.ingest, jobs.train, retention.compact_and_prune],
    schedules=[retention.nightly],
    sensors=[
        telemetry_sensors.landed_telemetry,
        training_sensors.enough_experiences,
        alerts.run_failed,
    ],
    resources={"project": Project()},
    # a step costs 0.15 s in process, 3 to 6 s in a process of its own
    executor=dg.in_process_executor,
)
