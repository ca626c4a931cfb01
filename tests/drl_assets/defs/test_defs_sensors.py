"""Sensors and housekeeping: what asks for runs, when, and what stays after compaction."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from asset_graph import Graph, opened, plain_events

from drl_assets.definitions import defs
from drl_assets.defs.operations.alerts import run_failed
from drl_assets.defs.operations.retention import compact
from drl_assets.defs.partitions import batches
from drl_assets.defs.resources import Project
from drl_assets.defs.telemetry.sensors import MAX_ATTEMPTS, landed_telemetry
from drl_assets.defs.training.sensors import MAX_RETRIES, enough_experiences
from drl_assets.tables.transforms import KEYS
from drl_core import settings


@pytest.fixture
def graph(tmp_path: Path, postgres_url: str) -> Iterator[Graph]:
    with opened(tmp_path, postgres_url) as graph:
        yield graph


def tick(
    graph: Graph, sensor: dg.SensorDefinition, cursor: str | None = None
) -> dg.SensorResult | dg.SkipReason:
    """One evaluation, its dynamic partitions added as the daemon would."""
    found = evaluated(graph, sensor, cursor)
    if isinstance(found, dg.SensorResult):
        for request in found.dynamic_partitions_requests or []:
            graph.instance.add_dynamic_partitions(
                request.partitions_def_name, list(request.partition_keys)
            )
    return found


def evaluated(
    graph: Graph, sensor: dg.SensorDefinition, cursor: str | None = None
) -> dg.SensorResult | dg.SkipReason:
    """One evaluation with nothing done about it, as the UI's "Preview tick result" has it."""
    context = dg.build_sensor_context(
        graph.instance, cursor=cursor, resources={"project": Project()}
    )
    found = sensor(context)
    assert isinstance(found, dg.SensorResult | dg.SkipReason)
    return found


def asked(found: dg.SensorResult | dg.SkipReason) -> dg.RunRequest:
    assert isinstance(found, dg.SensorResult), found
    (request,) = found.run_requests or []
    assert isinstance(request, dg.RunRequest)
    return request


def skipped(found: dg.SensorResult | dg.SkipReason) -> str:
    assert isinstance(found, dg.SkipReason), found
    return str(found.skip_message)


def test_nothing_landed_asks_for_nothing(graph: Graph) -> None:
    assert skipped(tick(graph, landed_telemetry)) == "nothing has landed"
    assert graph.project.landing.keys() == []


def test_all_landed_segments_become_one_run(graph: Graph) -> None:
    events = plain_events(6, 4)
    for part in (events[:8], events[8:16], events[16:]):
        graph.project.landing.land(part)
    request = asked(tick(graph, landed_telemetry))
    key = str(request.partition_key)
    assert graph.instance.get_dynamic_partitions(str(batches.name)) == [key]
    assert request.tags["drl/events"] == "24"
    graph.ingest(key)
    assert graph.project.landing.keys() == [key]
    batch = graph.project.landing.batch(key)
    assert request.run_key == f"{key}-1"
    assert [segment.events for segment in batch.segments] == [8, 8, 8]
    assert len(graph.project.tables.read("experiences", key)) == 24


def test_an_evaluation_has_no_effect_however_often_it_is_previewed(
    graph: Graph, tmp_path: Path
) -> None:
    graph.project.landing.land(plain_events(2, 4))

    def state() -> tuple[dict[Path, int], object]:
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        return files, graph.instance.get_dynamic_partitions(str(batches.name))

    before = state()
    requests = []
    for _ in range(2):
        requests.append(asked(evaluated(graph, landed_telemetry)))
    assert requests[0] == requests[1]
    assert state() == before
    assert graph.project.landing.keys() == []


def test_what_is_sealed_by_hand_gets_its_partition_and_its_run(graph: Graph) -> None:
    graph.project.landing.land(plain_events(6, 4))
    expected = asked(tick(graph, landed_telemetry)).partition_key
    graph.instance.delete_dynamic_partition(str(batches.name), str(expected))
    sealing = defs.resolve_job_def("seal_landed_telemetry").execute_in_process(
        instance=graph.instance
    )
    assert sealing.output_for_node("seal_batch") == [expected]
    assert graph.instance.get_dynamic_partitions(str(batches.name)) == [expected]
    assert asked(tick(graph, landed_telemetry)).partition_key == expected
    graph.ingest(str(expected))
    assert skipped(tick(graph, landed_telemetry)) == "nothing has landed"


@pytest.mark.property(4)
def test_a_run_that_was_killed_after_sealing_reads_the_same_segments_again(graph: Graph) -> None:
    graph.project.landing.land(plain_events(4, 4))
    key = str(asked(tick(graph, landed_telemetry)).partition_key)
    batch = graph.project.landing.seal(key)  # the first step of the run that was killed
    graph.project.landing.land(plain_events(2, 4, seed=9))
    assert asked(tick(graph, landed_telemetry)).partition_key == key
    graph.ingest(key)
    assert graph.project.landing.batch(key) == batch
    assert len(graph.project.tables.read("telemetry_batches", key)) == 16
    assert asked(tick(graph, landed_telemetry)).partition_key != key


@pytest.mark.property(4)
def test_while_no_run_comes_to_sealing_what_lands_joins_the_same_batch(graph: Graph) -> None:
    cursor, keys = None, set()
    for seed in range(MAX_ATTEMPTS):
        graph.project.landing.land(plain_events(1, 2, seed=seed))
        found = tick(graph, landed_telemetry, cursor)
        keys.add(asked(found).partition_key)
        assert isinstance(found, dg.SensorResult)
        cursor = found.cursor
    assert len(keys) == 1
    assert "by hand" in skipped(tick(graph, landed_telemetry, cursor))
    assert graph.instance.get_dynamic_partitions(str(batches.name)) == list(keys)


def test_the_configuration_is_read_once_in_a_run_and_in_a_tick(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, load = [], settings.load

    def counted() -> settings.Settings:
        reads.append(1)
        return load()

    monkeypatch.setattr(settings, "load", counted)
    key = graph.land(plain_events(6, 4))
    reads.clear()
    graph.ingest(key)
    assert len(reads) == 1
    reads.clear()
    evaluated(graph, enough_experiences)
    assert len(reads) == 1
    graph.train()
    assert len(reads) == 2


def test_while_a_batch_is_ingested_the_next_one_gathers(graph: Graph) -> None:
    graph.project.landing.land(plain_events(2, 4))
    run = graph.instance.create_run_for_job(graph.job("ingest"), status=dg.DagsterRunStatus.STARTED)
    assert "being ingested" in skipped(tick(graph, landed_telemetry))
    assert len(graph.project.landing.waiting()) == 1
    graph.instance.report_run_failed(run)
    assert asked(tick(graph, landed_telemetry)).partition_key


@pytest.mark.property(4)
def test_a_failed_batch_is_asked_for_again_and_never_skipped(graph: Graph) -> None:
    graph.project.landing.land(plain_events(2, 4))
    cursor, keys, runs = None, set(), set()
    for _ in range(MAX_ATTEMPTS):
        found = tick(graph, landed_telemetry, cursor)
        request = asked(found)
        graph.project.landing.seal(request.partition_key)  # by a run, which then fails
        keys.add(request.partition_key)
        runs.add(request.run_key)
        assert isinstance(found, dg.SensorResult)
        cursor = found.cursor
        graph.project.landing.land(plain_events(1, 2, seed=9))
    assert len(keys) == 1
    assert len(runs) == MAX_ATTEMPTS
    assert "by hand" in skipped(tick(graph, landed_telemetry, cursor))
    assert len(graph.project.landing.keys()) == 1


@pytest.mark.property(5)
def test_a_file_that_lands_many_times_gets_a_run_each_time(graph: Graph) -> None:
    events, cursor, runs = plain_events(2, 4), None, []
    for _ in range(MAX_ATTEMPTS + 2):
        graph.project.landing.land(events)
        found = tick(graph, landed_telemetry, cursor)
        request = asked(found)
        runs.append(request.run_key)
        assert isinstance(found, dg.SensorResult)
        cursor = found.cursor
        graph.project.landing.seal(request.partition_key)
        graph.project.tables.write(
            "experiences", str(request.partition_key), pl.DataFrame({"step": [0]})
        )
    assert len(set(runs)) == MAX_ATTEMPTS + 2


def test_a_batch_that_a_check_refused_is_asked_for_again_and_not_learned(graph: Graph) -> None:
    key = graph.land(plain_events(8, 4))
    graph.ingest(key)
    graph.project.tables.refuse("experiences", key, "out of range")
    assert skipped(tick(graph, enough_experiences)) == "0 new labelled experiences, 1 are needed"
    assert asked(tick(graph, landed_telemetry)).partition_key == key
    graph.ingest(key)
    assert graph.project.tables.keys("experiences") == [key]


def test_the_first_model_is_asked_for_once_and_a_refused_one_waits_for_more(graph: Graph) -> None:
    assert "0 new labelled" in skipped(tick(graph, enough_experiences))
    graph.ingest(graph.land(plain_events(12, 4)))
    found = tick(graph, enough_experiences)
    request = asked(found)
    assert request.run_key is not None
    assert request.run_key.startswith("train-00000001-")
    assert isinstance(found, dg.SensorResult)
    again = tick(graph, enough_experiences, found.cursor)  # no release came of it
    assert "0 new labelled experiences, 500 are needed" in skipped(again)


def test_a_training_that_broke_is_asked_for_again_a_few_times(graph: Graph) -> None:
    graph.ingest(graph.land(plain_events(12, 4)))
    cursor = None
    for _ in range(1 + MAX_RETRIES):
        found = tick(graph, enough_experiences, cursor)
        asked(found)
        assert isinstance(found, dg.SensorResult)
        cursor = found.cursor
        run = graph.instance.create_run_for_job(
            graph.job("train"), status=dg.DagsterRunStatus.STARTED
        )
        graph.instance.report_run_failed(run)
    assert "500 are needed" in skipped(tick(graph, enough_experiences, cursor))


def test_while_a_training_runs_none_is_asked_for(graph: Graph) -> None:
    graph.ingest(graph.land(plain_events(8, 4)))
    graph.instance.create_run_for_job(graph.job("train"), status=dg.DagsterRunStatus.STARTED)
    assert skipped(tick(graph, enough_experiences)) == "a training is under way"


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    received: list[dict[str, Any]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/alert", received
        server.shutdown()
        thread.join()


def alert(graph: Graph, run: dg.ExecuteInProcessResult) -> None:
    (failure,) = (event for event in run.all_events if event.is_run_failure)
    context = dg.build_run_status_sensor_context(
        sensor_name="run_failed",
        dagster_event=failure,
        dagster_instance=graph.instance,
        dagster_run=run.dagster_run,
        resources={"project": graph.project},
    ).for_run_failure()
    run_failed(context)


def test_a_failed_run_is_told_to_the_webhook(
    graph: Graph,
    webhook: tuple[str, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, received = webhook
    monkeypatch.setenv("DRL_ALERTS__WEBHOOK_URL", url)
    run = graph.train(expect=False)
    alert(graph, run)
    (told,) = received
    assert told["event"] == "run_failed"
    assert told["job"] == "train"
    assert told["run_id"] == run.run_id
    assert told["failed_steps"] == ["trained_checkpoint"]


def test_a_webhook_that_does_not_answer_fails_the_tick(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRL_ALERTS__WEBHOOK_URL", "http://127.0.0.1:9/")
    run = graph.train(expect=False)
    with pytest.raises(OSError, match="refused"):
        alert(graph, run)


def rows(graph: Graph) -> pl.DataFrame:
    scan = graph.project.tables.scan("experiences")
    assert scan is not None
    return scan.select(*KEYS, "batch", "held_out", "session_id").collect().sort("batch", *KEYS)


def test_compaction_bounds_live_batches_and_keeps_lineage_assignments_and_learning(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRL_RETRAINING__KEEP_LIVE_BATCHES", "1")
    events = plain_events(48, 6, seed=1)
    parts = [[e for e in events if int(e.episode_id) % 3 == part] for part in range(3)]
    keys = []
    for part in parts:
        keys.append(graph.land(part))
        graph.ingest(keys[-1])
    before = rows(graph)
    assert compact(graph.instance, graph.project) == 2
    assert graph.instance.get_dynamic_partitions(str(batches.name)) == keys[2:]
    assert graph.project.tables.keys("experiences") == keys[2:]
    assert graph.project.tables.done("experiences") == set(keys)
    assert rows(graph).equals(before)
    assert compact(graph.instance, graph.project) == 0
    # an interrupted compaction left a key behind: the next one takes it
    graph.instance.add_dynamic_partitions(str(batches.name), keys[:1])
    compact(graph.instance, graph.project)
    assert graph.instance.get_dynamic_partitions(str(batches.name)) == keys[2:]

    graph.train()
    champion = graph.project.champion
    assert champion is not None
    assert champion.batch_partitions == keys
    later = graph.land([*events[:6], *plain_events(3, 4, seed=5)[8:]])
    graph.ingest(later)
    assert graph.metadata("telemetry_batches")["redelivered"] >= 6
    held = rows(graph).group_by("session_id").agg(pl.col("held_out").n_unique())
    assert (held["held_out"] == 1).all()
