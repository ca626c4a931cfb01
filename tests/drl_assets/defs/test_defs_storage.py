"""The project's own dagster.yaml: runs and events in PostgreSQL, pruned without losing lineage."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from asset_graph import BATCH_ASSETS, Graph, opened, plain_events

from drl_assets.defs.operations.retention import KEEP_LOG_DAYS, compact_and_prune, prune_event_log
from drl_assets.defs.partitions import batches
from drl_cli.local.up import environment
from drl_core import settings


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Graph]:
    home = tmp_path_factory.mktemp("home")
    with opened(home, postgres_url) as graph, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(settings.load(), postgres_url).items():
            patch.setenv(name, value)
        with dg.DagsterInstance.get() as instance:
            graph.instance = instance
            yield graph


def counted(url: str) -> dict[str | None, int]:
    """Event type -> rows of Dagster's event log."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT dagster_event_type, count(*) FROM event_logs GROUP BY dagster_event_type"
        )
        return dict(rows.fetchall())


def test_a_run_leaves_nothing_outside_the_home_folder_and_the_database(
    graph: Graph, postgres_url: str
) -> None:
    key = graph.land(plain_events(6, 4))
    run = graph.ingest(key)
    assert graph.instance.get_run_by_id(run.run_id) is not None
    assert counted(postgres_url)["ASSET_MATERIALIZATION"] == len(BATCH_ASSETS)
    assert graph.instance.get_dynamic_partitions(str(batches.name)) == [key]
    home = graph.project.settings.home_path
    assert Path(graph.instance.storage_directory()).is_relative_to(home)


def test_young_log_rows_stay(graph: Graph, postgres_url: str) -> None:
    before = counted(postgres_url)
    assert prune_event_log(postgres_url, KEEP_LOG_DAYS) == 0
    assert counted(postgres_url) == before


def test_old_log_rows_go_and_what_was_materialised_and_checked_stays(
    graph: Graph, postgres_url: str
) -> None:
    before = counted(postgres_url)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE event_logs SET timestamp = timestamp - interval '30 days'")
    result = compact_and_prune.execute_in_process(
        instance=graph.instance, resources={"project": graph.project}
    )
    assert result.success
    after = counted(postgres_url)
    for kind in ("ASSET_MATERIALIZATION", "ASSET_CHECK_EVALUATION"):
        assert after[kind] == before[kind]
    with psycopg.connect(postgres_url) as connection:
        old = connection.execute(
            "SELECT DISTINCT dagster_event_type FROM event_logs"
            " WHERE timestamp < now() - interval '15 days'"
        ).fetchall()
    assert {kind for (kind,) in old} <= {
        "ASSET_MATERIALIZATION",
        "ASSET_MATERIALIZATION_PLANNED",
        "ASSET_CHECK_EVALUATION",
        "ASSET_CHECK_EVALUATION_PLANNED",
    }
    assert graph.metadata("experiences")["dagster/row_count"] == 24
