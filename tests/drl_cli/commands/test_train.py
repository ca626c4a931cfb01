"""`drl evaluate`: the table, the report, and what it says where telemetry cannot tell."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from drl_assets.learning.data import trajectories
from drl_assets.learning.data.episodes import from_experiences
from drl_assets.learning.evaluation import baselines
from drl_assets.learning.export import release
from drl_assets.learning.learners.networks import seeded_network
from drl_assets.sources.synthetic import generate_events
from drl_assets.tables.transforms import experiences_of
from drl_cli.main import app
from drl_core.release.signing_keys import signing_key
from drl_core.telemetry.event import Event
from tests.drl_assets.learning.small import saved

EVENTS = list(generate_events(24, 10, seed=1))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle of an untrained policy with one tuned baseline."""
    folder = tmp_path_factory.mktemp("policy")
    rows = trajectories.rows_of(
        from_experiences(experiences_of([EVENTS])), np.random.default_rng(0)
    )
    rule = {"threshold_rule": baselines._threshold_rule(baselines._monitored(rows))}
    made = dataclasses.replace(saved(seeded_network([8], 0), {}), preset="report", baselines=rule)
    release.publish(made, folder, signing_key(folder / "keys"), evaluation={})
    return folder


def written(folder: Path, events: list[Event]) -> Path:
    path = folder / "telemetry.jsonl"
    path.write_bytes(b"\n".join(msgspec.json.encode(event) for event in events))
    return path


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_evaluate_prints_one_document_and_writes_a_report(policy: Path, tmp_path: Path) -> None:
    telemetry = written(tmp_path, EVENTS)
    report = tmp_path / "report"
    done = run("--telemetry", telemetry, "--bundle", policy, "--json", "--report", report)
    assert done.exit_code == 0, done.output
    table = json.loads(done.stdout)
    assert {"drl", "threshold_rule", "clairvoyant"} <= set(table["policies"])
    assert table["off_policy"]["decisions"] == 0
    assert table["model_version"] in (report / "report.md").read_text()
    assert (report / "timeline.png").exists()


def test_without_the_checkpoint_the_table_says_what_it_lacks(policy: Path, tmp_path: Path) -> None:
    telemetry = written(tmp_path, EVENTS)
    (checkpoint,) = (policy / "checkpoints").glob("*.pt")
    aside = checkpoint.rename(tmp_path / "aside.pt")
    done = run("--telemetry", telemetry, "--bundle", policy, "--json")
    table = json.loads(done.stdout)
    assert "threshold_rule" not in table["policies"]
    assert any("no tuned baselines" in note for note in table["notes"])
    checkpoint.write_bytes(aside.read_bytes()[:-1])
    changed = run("--telemetry", telemetry, "--bundle", policy)
    assert changed.exit_code != 0
    assert "is not the checkpoint" in str(changed.exception)
    aside.rename(checkpoint)


@pytest.mark.parametrize(
    ("share", "change", "told"),
    [
        ("0", dict.fromkeys(("is_malicious", "severity", "attack_type")), "no labelled episode"),
        ("0.5", {"session_id": "only"}, "nothing to hold out"),
    ],
)
def test_telemetry_that_tells_nothing_is_refused_with_what_to_do(
    policy: Path, tmp_path: Path, share: str, change: dict[str, Any], told: str
) -> None:
    events = [msgspec.structs.replace(event, **change) for event in EVENTS]
    telemetry = written(tmp_path, events)
    done = run("--telemetry", telemetry, "--bundle", policy, "--hold-out", share)
    assert done.exit_code != 0
    assert told in str(done.exception)


def test_what_is_missing_is_told_beside_the_table(policy: Path, tmp_path: Path) -> None:
    events = [
        msgspec.structs.replace(event, is_malicious=False, memory_usage=None) for event in EVENTS
    ]
    done = run("--telemetry", written(tmp_path, events), "--bundle", policy, "--json")
    notes = " ".join(json.loads(done.stdout)["notes"])
    assert "no malicious episode" in notes
    assert "never measured: memory_usage" in notes


def test_an_unknown_preset_is_refused_with_the_names_of_the_known(tmp_path: Path) -> None:
    telemetry = written(tmp_path, EVENTS)
    out = tmp_path / "out"
    arguments = ["train", "--telemetry", telemetry, "--out", out, "--preset", "nonsense"]
    done = CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "--preset nonsense" in done.output
    assert "known are: default, report" in done.output
    assert not out.exists()
