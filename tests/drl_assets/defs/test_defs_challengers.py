"""A champion serves; challengers come. The bad ones are refused by the gate that is meant for them.

Real runs: the faults are put where they would come from (labels that were turned round, a training
that saw next to nothing, an export of something else), and the gates that refuse are named.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import polars as pl
import pytest
import torch
from asset_graph import Graph, checks_of, materialised, opened, plain_events

from drl_assets.defs.models import checks
from drl_assets.learning import trainer
from drl_assets.learning.export import onnx_export, release
from drl_assets.learning.learners.checkpoint import Checkpoint
from drl_assets.learning.learners.networks import QFunction
from drl_core.policy.actions import Action
from drl_core.release.manifest import Manifest
from drl_core.release.store import ModelStore
from drl_core.telemetry.event import Event

EPISODES, STEPS = 200, 6
manifest_of = release.manifest
GATES = {
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
}


def batch(number: int, turn: Callable[[Event], Event] = lambda event: event) -> list[Event]:
    """Episodes of sessions of their own."""
    return [
        turn(
            msgspec.structs.replace(
                event, sandbox_id=f"s{number}", session_id=f"{number}-{event.session_id}"
            )
        )
        for event in plain_events(EPISODES, STEPS, seed=number)
    ]


def wrongly_labelled(event: Event) -> Event:
    return msgspec.structs.replace(event, is_malicious=not event.is_malicious)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Graph]:
    """A graph whose champion was trained on one batch; a second batch waits to be learned."""
    with opened(tmp_path_factory.mktemp("home"), postgres_url) as graph:
        graph.ingest(graph.land(batch(1)))
        graph.train()
        graph.ingest(graph.land(batch(2)))
        yield graph


def refusing(run: dg.ExecuteInProcessResult) -> set[str]:
    """Names of the gates that refused, in this run."""
    return {
        name
        for name, one in checks_of(run).items()
        if not one.passed and one.severity is dg.AssetCheckSeverity.ERROR
    }


def pointer(graph: Graph) -> bytes:
    return graph.project.models.current_path.read_bytes()


def spoil_training(
    patch: pytest.MonkeyPatch, spoil: Callable[[pl.DataFrame], pl.DataFrame], **how: Any
) -> None:
    """A training that sees something else than the graph gave it."""
    train = trainer.train

    def other(rows: pl.DataFrame, *args: Any, **more: Any) -> Checkpoint:
        return train(spoil(rows), *args, **{**more, **how})

    patch.setattr(trainer, "train", other)


def turned(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(is_malicious=~pl.col("is_malicious"))


def one_percent(rows: pl.DataFrame) -> pl.DataFrame:
    """The windows of one episode in a hundred."""
    episodes = rows.select("sandbox_id", "episode_id").unique(maintain_order=True)
    few = episodes.head(max(len(episodes) // 100, 1))
    return rows.join(few, on=["sandbox_id", "episode_id"], how="semi", maintain_order="left")


def test_the_first_release_says_what_was_not_shown(served: Graph) -> None:
    champion = served.project.champion
    assert champion is not None
    gates = champion.evaluation["gates"]
    assert gates.keys() == GATES
    assert {name for name, one in gates.items() if not one["passed"]} == {
        "interruption_within_budget"
    }
    assert gates["interruption_within_budget"]["severity"] == "WARN"
    assert "which takes 368" in gates["interruption_within_budget"]["reason"]
    assert "| gate | verdict | reason |" in served.metadata("published_model")["gates"]


def test_a_challenger_that_learned_turned_labels_is_no_better_than_the_champion(
    served: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pointer(served)
    spoil_training(monkeypatch, turned, parent=None)
    run = served.train(expect=False)
    assert "not_worse_than_champion" in refusing(run)
    description = checks_of(run)["not_worse_than_champion"].description
    assert description is not None
    assert description.startswith("overall: worse, utility per episode -")
    assert materialised(run) == ["trained_checkpoint", "policy_evaluation"]
    assert pointer(served) == before


def test_a_challenger_of_one_percent_of_the_episodes_is_refused(
    served: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pointer(served)
    spoil_training(monkeypatch, one_percent, parent=None)
    run = served.train(expect=False)
    assert "not_worse_than_champion" in refusing(run)
    assert materialised(run) == ["trained_checkpoint", "policy_evaluation"]
    assert pointer(served) == before


def test_a_challenger_with_a_broken_export_is_refused(
    served: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, whole = pointer(served), onnx_export.export

    def broken(network: QFunction, **how: Any) -> bytes:
        with_noise = [tensor + 0.01 for tensor in network.state_dict().values()]
        network.load_state_dict(dict(zip(network.state_dict(), with_noise, strict=True)))
        return whole(network, **how)

    monkeypatch.setattr(onnx_export, "export", broken)
    run = served.train(expect=False)
    assert refusing(run) == {"onnx_parity"}
    assert materialised(run)[-1] == "onnx_model"
    assert pointer(served) == before


def test_a_learner_that_is_far_from_the_optimum_is_refused(
    served: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, train = pointer(served), trainer.train

    def careless(*args: Any, **more: Any) -> Checkpoint:
        found = train(*args, **more)
        wrong = {**found.hyperparameters, "learning_rate": 1e-9}
        return dataclasses.replace(found, hyperparameters=wrong)

    monkeypatch.setattr(trainer, "train", careless)
    run = served.train(expect=False)
    assert refusing(run) == {"oracle_regret"}
    assert materialised(run) == ["trained_checkpoint"]
    assert pointer(served) == before


def test_a_better_challenger_replaces_the_champion_and_a_batch_of_turned_labels_does_not(
    served: Graph,
) -> None:
    champion = served.project.champion
    assert champion is not None
    run = served.train()
    assert refusing(run) == set()
    after = served.project.champion
    assert after is not None
    assert after.parent_version == champion.model_version
    assert after.evaluation["gates"].keys() == GATES
    assert after.evaluation["gates"]["not_worse_than_champion"]["passed"]
    assert set(after.evaluation["policies"]) >= {"drl", "champion"}
    before = pointer(served)
    served.ingest(served.land(batch(3, wrongly_labelled)))
    run = served.train(expect=False)
    assert refusing(run) == {"labels_consistent"}
    found = checks_of(run)["labels_consistent"]
    assert found.description is not None
    assert "Look at 3-" in found.description
    assert materialised(run) == ["trained_checkpoint"]
    assert pointer(served) == before


def spoil_release(patch: pytest.MonkeyPatch, spoil: Callable[[ModelStore, Manifest], None]) -> None:
    """Something that happens to a release right after it was published."""
    publish = ModelStore.publish
    done: list[str] = []

    def publish_and_spoil(self: ModelStore, model: bytes, manifest: Manifest, key: Any) -> Manifest:
        signed = publish(self, model, manifest, key)
        if not done:
            done.append(signed.model_version)
            spoil(self, signed)
        return signed

    patch.setattr(ModelStore, "publish", publish_and_spoil)


def blob_overwritten(store: ModelStore, signed: Manifest) -> None:
    (store.root / signed.blob).write_bytes(b"not the model")


def pointer_overwritten(store: ModelStore, signed: Manifest) -> None:
    store.current_path.write_bytes(store.current_path.read_bytes()[:-1] + b" ")


def other_golden(*args: Any, **how: Any) -> Manifest:
    made = manifest_of(*args, **how)
    wrong = [[q + 1 for q in row] for row in made.golden.q_values]
    golden = msgspec.structs.replace(made.golden, q_values=wrong)
    return msgspec.structs.replace(made, golden=golden)


Spoil = Callable[[pytest.MonkeyPatch], None]
SPOILS: dict[str, Spoil] = {
    "checksum": lambda patch: spoil_release(patch, blob_overwritten),
    "format": lambda patch: spoil_release(patch, pointer_overwritten),
    "golden": lambda patch: patch.setattr(release, "manifest", other_golden),
}


def test_a_release_that_fails_its_check_is_taken_back_by_itself(
    tmp_path: Path, postgres_url: str
) -> None:
    with opened(tmp_path, postgres_url) as graph:
        graph.ingest(graph.land(batch(1)))
        with pytest.MonkeyPatch.context() as patch:
            SPOILS["checksum"](patch)
            taken_back(graph, "checksum", None)
        assert graph.project.champion is None  # there was nothing before it to go back to
        graph.train()
        first = graph.project.champion
        assert first is not None
        assert first.sequence == 2
        graph.ingest(graph.land(batch(2)))
        for reason, spoil in SPOILS.items():
            with pytest.MonkeyPatch.context() as patch:
                spoil(patch)
                taken_back(graph, reason, first)
            before = pointer(graph)
            again = checks.signature_and_manifest(
                dg.build_asset_check_context(instance=graph.instance), project=graph.project
            )
            assert not again.passed
            assert pointer(graph) == before


def taken_back(graph: Graph, reason: str, first: Manifest | None) -> None:
    """Train; the release fails its check for a reason, and the one before it is released again."""
    run = graph.train(expect=False)
    assert not checks_of(run)["signature_and_manifest"].passed
    (found,) = (one for one in checks_of(run).values() if reason in str(one.description))
    assert refusing(run) <= {"signature_and_manifest", "plays_as_evaluated"}
    assert materialised(run)[-1] == "published_model"  # no patterns of it are stored
    now = graph.project.champion
    assert (now and now.model_version) == (first and first.model_version)
    assert found.metadata["released_now"].value == (first.model_version if first else "none")
    if now is not None:
        assert now.rollback_of == found.metadata["taken_back"].value


def watching(checkpoint: Checkpoint) -> Checkpoint:
    """A network that wants to watch, whatever it sees."""
    weights = {name: torch.zeros_like(tensor) for name, tensor in checkpoint.weights.items()}
    weights[list(weights)[-1]][Action.CONTINUE_MONITORING] = 1.0
    return dataclasses.replace(checkpoint, weights=weights)


def test_a_policy_that_only_watches_comes_first_but_replaces_no_champion(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = trainer.train
    monkeypatch.setattr(trainer, "train", lambda *how, **more: watching(train(*how, **more)))
    with opened(tmp_path, postgres_url, DRL_LEARNING__PRESET="report") as graph:
        graph.ingest(graph.land(batch(1)))
        first = graph.train()
        assert refusing(first) == set()
        assert "worse: utility" in str(checks_of(first)["not_worse_than_supervised"].description)
        before = pointer(graph)
        graph.ingest(graph.land(batch(2)))
        second = graph.train(expect=False)
        assert refusing(second) == {"not_worse_than_supervised"}
        assert pointer(graph) == before
        for name in ("oracle_regret", "labels_consistent"):
            found = checks_of(second)[name]
            assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
            assert found.description == "not applicable to the report's DQN"


def test_a_challenger_that_is_better_replaces_a_champion_that_has_seen_little(
    tmp_path: Path, postgres_url: str
) -> None:
    with opened(tmp_path, postgres_url) as graph:
        graph.ingest(graph.land(batch(1)[: 12 * STEPS]))
        graph.train()
        first = graph.project.champion
        graph.ingest(graph.land(batch(2)))
        run = graph.train()
        assert checks_of(run)["not_worse_than_champion"].passed
        now = graph.project.champion
        assert first is not None
        assert now is not None
        assert now.parent_version == first.model_version
        low, high = now.evaluation["against_champion"]["utility"]["interval"]
        assert 0 <= low < high
