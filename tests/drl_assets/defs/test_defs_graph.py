"""The whole graph on generated telemetry: two batches, two releases, and what is left of them."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import msgspec
import numpy as np
import polars as pl
import psycopg
import pytest
from asset_graph import (
    BATCH_ASSETS,
    MODEL_ASSETS,
    Graph,
    checks_of,
    materialised,
    opened,
    plain_events,
)

from drl_assets.definitions import defs
from drl_assets.learning.learners import checkpoint
from drl_assets.tables import transforms
from drl_core.release.signing_keys import trusted_keys
from drl_core.telemetry.event import Event

EPISODES, STEPS = 60, 8
LATE = ("3", 2)
"""Episode and step of a window that comes after its successors."""

BATCH_CHECKS = {
    "measured_share",
    "telemetry_schema",
    "features_in_range",
    "no_label_leakage",
    "state_schema",
    "both_classes",
    "experience_schema",
    "no_duplicate_events",
}
MODEL_CHECKS = {
    "finite_and_bounded",
    "drift_within_bounds",
    "labels_consistent",
    "oracle_regret",
    "not_worse_than_doing_nothing_or_everything",
    "not_worse_than_champion",
    "interruption_within_budget",
    "not_worse_than_supervised",
    "review_within_cap",
    "onnx_parity",
    "signature_and_manifest",
    "plays_as_evaluated",
    "pattern_count",
}
MAY_WARN = {"interruption_within_budget", "labels_consistent", "drift_within_bounds"}
"""What so few episodes cannot show; and the second batch begins in the middle of episodes."""


@dataclass
class History:
    """What happened: two batches ingested, two models trained."""

    graph: Graph
    events: list[Event]
    keys: list[str]
    ingests: list[dg.ExecuteInProcessResult]
    trainings: list[dg.ExecuteInProcessResult]
    files_before_second_training: dict[Path, tuple[int, str]]


def files(graph: Graph) -> dict[Path, tuple[int, str]]:
    """Every table file with its modification time and hash."""
    return {
        path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in graph.project.tables.root.rglob("*.parquet")
    }


def is_late(event: Event) -> bool:
    return (str(event.episode_id), event.step) == LATE


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[History]:
    events = plain_events(EPISODES, STEPS, seed=1)
    early = [e for e in events if int(e.episode_id) < 40 and e.step < 5 and not is_late(e)]
    again = [e for e in early if e.step >= 3]
    rest = [e for e in events if e not in early]
    with opened(tmp_path_factory.mktemp("home"), postgres_url) as graph:
        first = graph.land(early[::2], early[1::2], early[:20])
        ingests = [graph.ingest(first)]
        trainings = [graph.train()]
        second = graph.land(again, rest[::-1])
        ingests.append(graph.ingest(second))
        before = files(graph)
        trainings.append(graph.train())
        yield History(graph, events, [first, second], ingests, trainings, before)


def test_a_run_materialises_every_asset_in_the_order_of_the_data(history: History) -> None:
    for run in history.ingests:
        assert materialised(run) == list(BATCH_ASSETS)
    for run in history.trainings:
        assert materialised(run) == list(MODEL_ASSETS)


def test_every_check_is_evaluated_and_passes(history: History) -> None:
    for run, expected in (
        *((run, BATCH_CHECKS) for run in history.ingests),
        *((run, MODEL_CHECKS) for run in history.trainings),
    ):
        found = checks_of(run)
        assert found.keys() == expected
        failed = {name: one.severity for name, one in found.items() if not one.passed}
        assert failed.keys() <= MAY_WARN
        assert set(failed.values()) <= {dg.AssetCheckSeverity.WARN}


def test_metadata_shows_counts_tables_and_pictures(history: History) -> None:
    telemetry = history.graph.metadata("telemetry_batches")
    assert telemetry["dagster/row_count"] + telemetry["redelivered"] == sum(
        segment.events for segment in history.graph.project.landing.batch(history.keys[1]).segments
    )
    assert "| benign |" in telemetry["by_attack_type"]
    states = history.graph.metadata("normalized_states")
    assert states["continued_episodes"] == 40
    assert states["histograms"].startswith("![histogram")
    assert "| syscalls |" in states["features"]
    experiences = history.graph.metadata("experiences")
    assert experiences["dagster/row_count"] == states["dagster/row_count"]
    assert "| quarantine_file |" in experiences["rewards"]
    trained = history.graph.metadata("trained_checkpoint")
    assert "data:image/png;base64," in trained["learning_curve"]
    assert trained["gradient_steps"] == 100
    evaluated = history.graph.metadata("policy_evaluation")
    assert {"| never_act |", "| always_terminate |", "| drl |"} <= set(
        re.findall(r"\| \w+ \|", evaluated["policies"])
    )
    assert "data:image/png;base64," in evaluated["timeline"]
    assert history.graph.metadata("onnx_model")["nodes"] > 10
    assert history.graph.metadata("published_model")["sequence"] == 2


def test_every_asset_says_whose_it_is_and_what_it_is() -> None:
    graph = defs.resolve_asset_graph()
    for name in (*BATCH_ASSETS, *MODEL_ASSETS):
        node = graph.get(dg.AssetKey(name))
        assert node.owners
        assert node.description
        assert node.code_version
        assert node.kinds


def test_a_release_names_its_lineage(history: History) -> None:
    project = history.graph.project
    trusted = trusted_keys(project.settings.keys_path)
    first, second = (
        project.models.load(trusted, path).manifest for path in project.models.releases()
    )
    assert first.batch_partitions == history.keys[:1]
    assert second.batch_partitions == history.keys
    assert (first.parent_version, second.parent_version) == (None, first.model_version)
    assert first.dagster_run_id == history.trainings[0].run_id
    assert second.dagster_run_id == history.trainings[1].run_id
    assert second.training_episodes > first.training_episodes
    assert second.evaluation["sessions"] >= 2
    assert project.champion == second


def test_patterns_of_each_release_are_in_postgresql(history: History) -> None:
    project = history.graph.project
    with psycopg.connect(project.database_url) as connection:
        stored = dict(
            connection.execute(
                "SELECT model_version, count(*) FROM attack_patterns GROUP BY model_version"
            ).fetchall()
        )
    counts = [checks_of(run)["pattern_count"].metadata["stored"].value for run in history.trainings]
    releases = project.models.releases()
    trusted = trusted_keys(project.settings.keys_path)
    versions = [project.models.load(trusted, path).manifest.model_version for path in releases]
    assert sum(counts) > 0
    assert stored == {v: n for v, n in zip(versions, counts, strict=True) if n}


@pytest.mark.property(12)
@pytest.mark.property(15)
def test_an_episode_over_two_batches_has_the_states_of_one_batch(history: History) -> None:
    whole = transforms.telemetry_frame([[e for e in history.events if not is_late(e)]]).frame
    expected = transforms.state_frame(whole).frame.drop("window")
    tables = history.graph.project.tables
    stored = pl.concat([tables.read("normalized_states", key) for key in history.keys])
    found = stored.sort(transforms.KEYS)
    assert found.select(transforms.KEYS).equals(expected.select(transforms.KEYS))
    np.testing.assert_allclose(
        found["state"].to_numpy(), expected["state"].to_numpy(), atol=1e-6, rtol=0
    )


@pytest.mark.property(5)
def test_a_redelivered_window_is_in_one_batch_only(history: History) -> None:
    tables = history.graph.project.tables
    rows = [tables.read("telemetry_batches", key) for key in history.keys]
    together = pl.concat(rows)
    assert len(together) == EPISODES * STEPS
    assert together.select(transforms.KEYS).is_unique().all()
    assert history.graph.metadata("telemetry_batches")["redelivered"] == 80


@pytest.mark.property(6)
def test_a_late_window_is_kept_and_flagged_and_makes_no_state(history: History) -> None:
    tables = history.graph.project.tables
    first, second = (tables.read("telemetry_batches", key) for key in history.keys)
    late = second.filter("late")
    assert late.select("episode_id", "step").rows() == [LATE]
    states = tables.read("normalized_states", history.keys[1])
    assert states.filter(pl.col("episode_id") == LATE[0], pl.col("step") == LATE[1]).is_empty()
    flagged = first.filter("gap").select("episode_id", "step").rows()
    assert flagged == [(LATE[0], LATE[1] + 1)]
    assert second["gap"].sum() == 0


@pytest.mark.property(31)
def test_incremental_training_rewrites_no_earlier_partition(history: History) -> None:
    assert files(history.graph) == history.files_before_second_training


@pytest.mark.property(31)
def test_incremental_training_learns_from_new_batches_alone(history: History) -> None:
    new = history.graph.project.tables.read("experiences", history.keys[1])
    trained = history.graph.metadata("trained_checkpoint")
    assert trained["new_batches"] == 1
    assert trained["new_rows"] == len(new.filter(~pl.col("held_out")))
    model = checkpoint.load(history.graph.project.checkpoint_path(trained["version"]))
    assert model.batches == history.keys


@pytest.mark.property(19)
def test_an_episode_whose_record_ends_is_truncated_and_never_terminal(history: History) -> None:
    first = history.graph.project.tables.read("experiences", history.keys[0])
    ends = first.filter("truncated")
    assert len(ends) == 40
    assert ends["terminal"].to_numpy()[:, 0].sum() == 0


def test_held_out_sessions_stay_held_out_in_later_batches(history: History) -> None:
    tables = history.graph.project.tables
    rows = pl.concat(
        [tables.read("experiences", k).select("session_id", "held_out") for k in history.keys]
    )
    assert (rows.group_by("session_id").agg(pl.col("held_out").n_unique())["held_out"] == 1).all()
    assert 0 < rows.filter("held_out")["session_id"].n_unique() < rows["session_id"].n_unique() / 2


@pytest.mark.property(5)
def test_materialising_a_batch_again_gives_the_same_tables(history: History) -> None:
    def contents() -> dict[Path, str]:
        return {path: digest for path, (_, digest) in files(history.graph).items()}

    before = contents()
    history.graph.ingest(history.keys[1])
    history.graph.ingest(history.keys[0])
    assert contents() == before


@pytest.mark.property(5)
def test_a_batch_of_nothing_but_redelivered_windows_changes_nothing(history: History) -> None:
    key = history.graph.land(history.events[:50])
    run = history.graph.ingest(key)
    assert all(one.passed for one in checks_of(run).values())
    assert history.graph.metadata("telemetry_batches")["redelivered"] == 50
    assert history.graph.project.tables.read("experiences", key).is_empty()


@pytest.mark.property(6)
def test_a_gap_between_batches_is_flagged_and_a_redelivery_before_it_hides_nothing(
    history: History,
) -> None:
    one = [
        msgspec.structs.replace(e, sandbox_id="gap", episode_id="gap")
        for e in history.events[:STEPS]
    ]
    history.graph.ingest(history.graph.land(one[:3]))
    key = history.graph.land([one[0], one[3], one[6]])
    history.graph.ingest(key)
    found = history.graph.project.tables.read("telemetry_batches", key)
    assert found.select("step", "gap", "late").rows() == [(3, False, False), (6, True, False)]


@pytest.mark.property(31)
def test_an_unlearned_batch_is_all_that_a_training_opens(history: History) -> None:
    """Last here: it spoils the tables of the batches that were learned from."""
    graph = history.graph
    fresh = [msgspec.structs.replace(e, sandbox_id="fresh") for e in plain_events(20, 4, seed=7)]
    newest = graph.land(fresh)
    graph.ingest(newest)
    learned = graph.project.champion
    assert learned is not None
    for key in learned.batch_partitions:
        graph.project.tables.path("experiences", key).write_bytes(b"not Parquet")
    result = defs.resolve_job_def("train").execute_in_process(
        instance=graph.instance, asset_selection=[dg.AssetKey("trained_checkpoint")]
    )
    assert result.success
    assert graph.metadata("trained_checkpoint")["last_batch"] == newest
