"""The asset graph on a real Dagster instance, a real database and a folder of its own.

`Graph` is a small hand on the real jobs: land, seal, ingest, train, and look at what came of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import psycopg
import pytest

from drl_assets.definitions import defs
from drl_assets.defs.partitions import batches
from drl_assets.defs.resources import Project
from drl_assets.sources.synthetic import generate_events
from drl_core.telemetry.event import Event

BATCH_ASSETS = ("telemetry_batches", "normalized_states", "experiences")
MODEL_ASSETS = (
    "trained_checkpoint",
    "policy_evaluation",
    "onnx_model",
    "published_model",
    "attack_patterns",
)


class Graph:
    """The project's jobs over one home folder."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.project = Project()

    def land(self, *segments: list[Event]) -> str:
        """Land segments and seal them into one batch; gives its key."""
        for segment in segments:
            self.project.landing.land(segment)
        batch = self.project.landing.seal()
        assert batch is not None
        self.instance.add_dynamic_partitions(str(batches.name), [batch.key])
        return batch.key

    def ingest(self, key: str, *, expect: bool = True) -> dg.ExecuteInProcessResult:
        """One run of the job `ingest` over a batch."""
        return self._run("ingest", expect, partition_key=key)

    def train(self, *, expect: bool = True) -> dg.ExecuteInProcessResult:
        """One run of the job `train`."""
        return self._run("train", expect)

    def _run(self, job: str, expect: bool, **how: Any) -> dg.ExecuteInProcessResult:
        result = defs.resolve_job_def(job).execute_in_process(
            instance=self.instance, raise_on_error=expect, **how
        )
        assert result.success is expect
        return result

    def job(self, name: str) -> dg.JobDefinition:
        """A job of the code location."""
        return defs.resolve_job_def(name)

    @staticmethod
    def key(name: str) -> dg.AssetKey:
        """An asset's key."""
        return dg.AssetKey(name)

    def metadata(self, asset: str) -> dict[str, Any]:
        """Metadata values of the latest materialisation."""
        event = self.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None
        assert event.asset_materialization is not None
        return {name: one.value for name, one in event.asset_materialization.metadata.items()}


def plain_events(episodes: int, steps: int, **how: Any) -> list[Event]:
    """Generated telemetry whose labels show in its signals, so that few gradient steps suffice."""
    return [
        msgspec.structs.replace(
            event,
            severity=1.0 if event.is_malicious else 0.0,
            registry_modification=event.is_malicious,
            privilege_escalation_attempt=event.is_malicious,
            code_injection_detected=event.is_malicious,
        )
        for event in generate_events(episodes, steps, **how)
    ]


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    """Check name -> what it found in this run."""
    return {one.check_name: one for one in result.get_asset_check_evaluations()}


def materialised(result: dg.ExecuteInProcessResult) -> list[str]:
    """Names of the assets that a run materialised, in order."""
    events = result.get_asset_materialization_events()
    return [event.asset_key.to_user_string() for event in events if event.asset_key]


@contextmanager
def opened(home: Path, url: str, **settings: str) -> Iterator[Graph]:
    """A graph over an empty home folder, an ephemeral Dagster instance and a migrated database."""
    variables = {
        "DRL_HOME": str(home),
        "DRL_CONFIG": str(home / "config"),
        "DRL_DATABASE_URL": url,
        "DRL_LEARNING__GRADIENT_STEPS": "100",
        "DRL_LEARNING__INCREMENTAL_STEPS": "100",
        "DRL_LEARNING__VALIDATION_STEPS": "50",
        "DRL_LEARNING__EPISODES": "20",
        **settings,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with psycopg.connect(url) as connection:  # of a graph that another test had
            connection.execute("TRUNCATE episode_progress, attack_patterns")
        with dg.DagsterInstance.ephemeral() as instance:
            yield Graph(instance)
