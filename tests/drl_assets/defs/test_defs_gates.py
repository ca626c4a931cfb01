"""Every blocking check holds back what comes after it, and a database that is away is waited for.

The faults are put where they would come from (a table that was written wrong, a training that
diverged, a graph of another network); assets, checks and Dagster's gating are the real ones.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import psycopg
import pytest
import torch
from asset_graph import Graph, checks_of, materialised, opened, plain_events

from drl_assets.learning import trainer
from drl_assets.learning.export import onnx_export
from drl_assets.learning.learners.checkpoint import Checkpoint
from drl_assets.learning.learners.networks import seeded_network
from drl_assets.tables.store import Tables
from drl_core.migrations import migrate
from drl_core.policy.actions import ACTION_COUNT, Action
from drl_core.storage import patterns
from drl_core.storage.database import DatabaseUnavailable
from drl_core.storage.patterns import AttackPattern
from drl_core.telemetry.event import Event
from tests.postgres import FastPostgres

Spoil = Callable[[pl.DataFrame], pl.DataFrame]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Graph]:
    """A graph with one batch and a released champion; tests add batches to it."""
    with opened(tmp_path_factory.mktemp("home"), postgres_url) as graph:
        graph.ingest(graph.land(plain_events(60, 6, seed=1)))
        graph.train()
        yield graph


def first_state(value: float) -> Spoil:
    def spoil(frame: pl.DataFrame) -> pl.DataFrame:
        states = frame["state"].to_numpy().copy()
        states[0, 4] = value
        return frame.with_columns(state=pl.Series(states, dtype=frame.schema["state"]))

    return spoil


def repeated(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([frame, frame.head(1)])


@pytest.mark.parametrize(
    ("table", "spoil", "refusing", "made"),
    [
        (
            "telemetry_batches",
            lambda frame: frame.with_columns(cpu_usage=-pl.lit(1.0)),
            "telemetry_schema",
            ["telemetry_batches"],
        ),
        ("telemetry_batches", repeated, "telemetry_schema", ["telemetry_batches"]),
        (
            "normalized_states",
            first_state(1.5),
            "features_in_range",
            ["telemetry_batches", "normalized_states"],
        ),
        (
            "normalized_states",
            first_state(np.nan),
            "features_in_range",
            ["telemetry_batches", "normalized_states"],
        ),
        (
            "normalized_states",
            first_state(0.123),
            "no_label_leakage",
            ["telemetry_batches", "normalized_states"],
        ),
        (
            "normalized_states",
            lambda frame: frame.with_columns(step=pl.col("step").cast(pl.Int32)),
            "state_schema",
            ["telemetry_batches", "normalized_states"],
        ),
        (
            "experiences",
            lambda frame: frame.with_columns(damage=pl.lit(-1.0)),
            "experience_schema",
            ["telemetry_batches", "normalized_states", "experiences"],
        ),
    ],
)
def test_a_table_that_breaks_a_rule_goes_no_further(
    tmp_path: Path,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    table: str,
    spoil: Spoil,
    refusing: str,
    made: list[str],
) -> None:
    write = Tables.write

    def write_wrong(self: Tables, name: str, key: str, frame: pl.DataFrame) -> Path:
        return write(self, name, key, spoil(frame) if name == table else frame)

    monkeypatch.setattr(Tables, "write", write_wrong)
    with opened(tmp_path, postgres_url) as graph:
        run = graph.ingest(graph.land(plain_events(4, 3)), expect=False)
        assert not checks_of(run)[refusing].passed
        assert materialised(run) == made
        assert graph.project.tables.keys("experiences") == []


def test_a_window_that_an_earlier_batch_holds_is_refused_and_not_learned(
    tmp_path: Path, postgres_url: str
) -> None:
    events = plain_events(4, 3)
    with opened(tmp_path, postgres_url) as graph:
        first = graph.land(events)
        graph.ingest(first)
        table = graph.project.tables.read("experiences", first)
        second = graph.land(events[:3])
        with pytest.MonkeyPatch.context() as patch:
            write = Tables.write
            patch.setattr(
                Tables,
                "write",
                lambda self, name, key, frame: write(
                    self, name, key, table.head(3) if name == "experiences" else frame
                ),
            )
            run = graph.ingest(second, expect=False)
        assert not checks_of(run)["no_duplicate_events"].passed
        assert graph.project.tables.keys("experiences") == [first]
        graph.ingest(second)
        assert graph.project.tables.keys("experiences") == [first, second]


def spoil_training(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Checkpoint], Checkpoint]
) -> None:
    train = trainer.train
    monkeypatch.setattr(trainer, "train", lambda *how, **more: spoil(train(*how, **more)))


def always(action: Action) -> Callable[[Checkpoint], Checkpoint]:
    """A checkpoint that wants one action, whatever it sees."""

    def spoil(checkpoint: Checkpoint) -> Checkpoint:
        weights = {name: torch.zeros_like(tensor) for name, tensor in checkpoint.weights.items()}
        weights["scale"] += 1.0
        last = max(name for name in weights if name.startswith("biases."))
        weights[last][..., [1 + action, 1 + ACTION_COUNT + action]] = 1.0  # benign or malicious
        return dataclasses.replace(checkpoint, weights=weights)

    return spoil


def not_finite(checkpoint: Checkpoint) -> Checkpoint:
    weights = dict(checkpoint.weights)
    name = next(iter(weights))
    weights[name] = weights[name].clone()
    weights[name][0] = float("nan")
    return dataclasses.replace(checkpoint, weights=weights)


def too_steep(checkpoint: Checkpoint) -> Checkpoint:
    return dataclasses.replace(checkpoint, max_gradient_norm=1e6)


@pytest.mark.parametrize(
    ("spoil", "refusing", "made"),
    [
        (not_finite, "finite_and_bounded", ["trained_checkpoint"]),
        (too_steep, "finite_and_bounded", ["trained_checkpoint"]),
        (
            always(Action.TERMINATE_PROCESS),
            "not_worse_than_doing_nothing_or_everything",
            ["trained_checkpoint", "policy_evaluation"],
        ),
    ],
    ids=["not finite", "too steep", "worse than doing nothing"],
)
def test_a_bad_challenger_is_refused_and_the_champion_stays(
    learned: Graph,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Checkpoint], Checkpoint],
    refusing: str,
    made: list[str],
) -> None:
    champion = learned.project.champion
    assert champion is not None
    if set(learned.project.tables.keys("experiences")) <= set(champion.batch_partitions):
        more = plain_events(20, 6, seed=2, malicious_share=0.1)
        learned.ingest(learned.land([rename(event) for event in more]))
    spoil_training(monkeypatch, spoil)
    run = learned.train(expect=False)
    assert not checks_of(run)[refusing].passed
    assert materialised(run) == made
    assert learned.project.champion == champion


def rename(event: Event) -> Event:
    return msgspec.structs.replace(event, sandbox_id="later")


def test_a_graph_of_another_network_is_not_released(
    learned: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = learned.project.champion
    other = onnx_export.export(seeded_network([256, 256], 99))
    monkeypatch.setattr(onnx_export, "export", lambda network, **how: other)
    # a challenger of the same batches stands already; only its graph is made anew
    run = learned.job("train").execute_in_process(
        instance=learned.instance,
        raise_on_error=False,
        asset_selection=[learned.key(name) for name in ("onnx_model", "published_model")],
    )
    assert not run.success
    assert not checks_of(run)["onnx_parity"].passed
    assert materialised(run) == ["onnx_model"]
    assert learned.project.champion == champion


def test_a_database_that_is_away_at_the_start_is_waited_for(tmp_path: Path) -> None:
    server = FastPostgres(tmp_path / "postgres")
    url = server.start()
    try:
        migrate(url)
        with opened(tmp_path / "home", url) as graph:
            key = graph.land(plain_events(2, 3))
            port = int(url.rsplit(":", 1)[1].split("/")[0])
            server.stop()
            with server_that_comes(tmp_path / "postgres", port, after_s=1.0):
                graph.ingest(key)
    finally:
        server.stop()


@contextmanager
def server_that_comes(folder: Path, port: int, after_s: float) -> Iterator[None]:
    """A server that starts a while after this context, and ends with it."""
    enough = threading.Event()

    def serve() -> None:  # a server lives as long as the thread that started it
        enough.wait(after_s)
        with FastPostgres(folder, port=port):
            enough.wait()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def test_a_database_that_stays_away_fails_the_run_and_leaves_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    with opened(tmp_path, postgres_url) as graph:
        key = graph.land(plain_events(2, 3))
        monkeypatch.setenv("DRL_DATABASE_URL", "postgresql://nobody:x@127.0.0.1:9/drl")
        run = graph.ingest(key, expect=False)
        assert materialised(run) == []
        monkeypatch.setenv("DRL_DATABASE_URL", postgres_url)
        graph.ingest(key)


@pytest.mark.property(43)
def test_patterns_that_could_not_be_stored_follow_with_the_next_release(
    tmp_path: Path, postgres_url: str
) -> None:
    def away(url: str, found: list[AttackPattern]) -> int:
        raise DatabaseUnavailable("no connection")

    with opened(tmp_path, postgres_url) as graph:
        graph.ingest(graph.land(plain_events(60, 6, seed=1)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(patterns, "upsert", away)
            graph.train(expect=False)
        unstored = graph.project.champion
        assert unstored is not None
        graph.ingest(graph.land([rename(event) for event in plain_events(40, 6, seed=2)]))
        graph.train()
        with psycopg.connect(postgres_url) as connection:
            found = connection.execute(
                "SELECT DISTINCT sandbox_id, model_version FROM attack_patterns"
            ).fetchall()
        champion = graph.project.champion
        assert champion is not None
        assert champion.parent_version == unstored.model_version
        assert {version for _, version in found} == {champion.model_version}
        assert len({sandbox for sandbox, _ in found}) == 2
