"""The overview's facts: from a database with Dagster's own tables, and where things go wrong."""

import datetime as dt
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from dagster import DagsterRun, DagsterRunStatus
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster_postgres import PostgresRunStorage, PostgresScheduleStorage
from dagster_shared.error import SerializableErrorInfo
from litestar.testing import TestClient

from drl_core.telemetry.event import Event
from drl_core.telemetry.landing import LandingZone
from drl_serving.app import create_app
from drl_serving.console.health import ago

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC).timestamp()


def cards(page: Any) -> dict[str, tuple[str, str]]:
    """Name -> standing and text."""
    assert page.status_code == 200
    found = re.findall(r'<li class="card (\w+)">(.*?)</li>', page.text, re.DOTALL)
    told = {}
    for standing, inner in found:
        name, *rest = [line.strip() for line in re.sub(r"<[^>]+>", "\n", inner).split("\n")][2:]
        told[name] = (standing, " ".join(text for text in rest if text))
    return told


@pytest.fixture
def with_database(publisher: Any, postgres_url: str) -> Iterator[TestClient[Any]]:
    settings = msgspec.structs.replace(publisher.settings, database_url=postgres_url)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def tick(storage: Any, origin: Any, status: TickStatus, at: float) -> None:
    data = TickData(
        origin.get_id(),
        origin.instigator_name,
        InstigatorType.SENSOR,
        status,
        at,
        run_ids=[],
        error=SerializableErrorInfo("wrong", [], None) if status == TickStatus.FAILURE else None,
        selector_id=origin.get_selector().get_id(),
    )
    storage.create_tick(data)


def test_nothing_is_known_of_a_graph_whose_tables_are_elsewhere(
    with_database: TestClient[Any],
) -> None:
    page = with_database.get("/console")
    assert cards(page)["PostgreSQL"][0] == "ok"
    assert "Sensors unknown: this service reads no database" in page.text


def test_sensors_and_runs_are_read_from_dagsters_own_tables(
    with_database: TestClient[Any], postgres_url: str
) -> None:
    schedules = PostgresScheduleStorage(postgres_url)
    runs = PostgresRunStorage(postgres_url)
    target = LoadableTargetOrigin(module_name="drl_assets.definitions")
    repository = RemoteRepositoryOrigin(InProcessCodeLocationOrigin(target), "__repository__")
    for name, ticks in (
        ("enough_experiences", (TickStatus.SUCCESS, TickStatus.SKIPPED)),
        ("landed_telemetry", (TickStatus.SKIPPED, TickStatus.FAILURE)),
        ("run_failed", ()),
    ):
        origin = RemoteInstigatorOrigin(repository, name)
        state = InstigatorState(
            origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, SensorInstigatorData()
        )
        schedules.add_instigator_state(state)
        for number, status in enumerate(ticks):
            tick(schedules, origin, status, NOON + 60 * number)
    for status in (DagsterRunStatus.SUCCESS, DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE):
        runs.add_run(DagsterRun("ingest", status=status))
    page = with_database.get("/console")
    assert cards(page)["Runs of the last day"] == ("attention", "1 failure, 2 success attention")
    noon, after = "2026-11-22 12:00:00", "2026-11-22 12:01:00"
    told = re.sub(r"<[^>]+>", "|", page.text)
    told = re.sub(r"\|+", "|", told)
    assert f"enough_experiences|sensor|{after}|nothing to do|{noon}|" in told
    assert f"landed_telemetry|sensor|{after}|failure|never|" in told
    assert "run_failed|sensor|never|not yet looked at|never|" in told


def test_what_waits_too_long_is_told(publisher: Any, client: TestClient[Any]) -> None:
    zone = LandingZone(publisher.settings.landing_path)
    zone.land([Event(episode_id="e", step=0)])
    batch = zone.seal()
    assert batch is not None
    late = zone.land([Event(episode_id="e", step=1)])
    old = f"{int((dt.datetime.now().timestamp() - 600) * 1e9):020d}-{late.name.partition('-')[2]}"
    segments = publisher.settings.landing_path / "segments"
    (segments / late.name).rename(segments / old)
    told = cards(client.get("/console"))
    assert told["Landed segments"] == ("attention", "1 in no batch attention oldest 10 min ago")
    assert batch.key in told["Last batch"][1]
    assert told["PostgreSQL"][0] == "unknown"
    assert told["Last decision"] == ("unknown", "none yet unknown")


def test_a_landing_zone_that_cannot_be_written_is_told(
    publisher: Any, client: TestClient[Any]
) -> None:
    publisher.settings.landing_path.parent.mkdir(exist_ok=True)
    _replace_by_a_file(publisher.settings.landing_path)
    told = cards(client.get("/console"))
    assert told["Landing zone"][0] == "failed"
    assert told["Landed segments"][0] == "failed"


def test_a_service_without_a_model_says_so(publisher: Any) -> None:
    with TestClient(create_app(publisher.settings), raise_server_exceptions=False) as client:
        assert cards(client.get("/console"))["Model"][0] == "failed"
        assert "No released model has been loaded" in client.get("/console/model").text
        assert client.get("/console/model/rollback").status_code == 503


def test_durations_are_told_in_the_unit_that_fits() -> None:
    told = [ago(seconds) for seconds in (-1, 0, 119, 120, 7199, 7200, 172_800)]
    assert told == [
        *("0 s ago", "0 s ago", "119 s ago", "2 min ago", "120 min ago", "2 h ago", "2 d ago"),
    ]


def _replace_by_a_file(folder: Path) -> None:
    if folder.exists():
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    folder.write_text("in the way")
