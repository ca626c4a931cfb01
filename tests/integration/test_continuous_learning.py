"""With `drl up` running, imported telemetry becomes a decision by a new model, by itself.

The real command with the real database, daemon, UI and service; `benchmarks.freshness` holds the
hand on it, and times the same way with full trainings.
"""

import itertools
import sys
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import freshness
from drl_assets.sources.synthetic import generate_events
from drl_core.telemetry.event import Event
from drl_core.telemetry.landing import LandingZone

STAGES = ["landing", "batch", "experiences", "checkpoint", "release", "first decision"]


def recorded(part: str, seed: int) -> list[Event]:
    """60 episodes of 20 recordings; labels show in the signals, so few gradient steps suffice."""
    return [
        msgspec.structs.replace(
            event,
            sandbox_id=part,
            session_id=f"{part}-{event.session_id}",
            severity=1.0 if event.is_malicious else 0.0,
            registry_modification=event.is_malicious,
            privilege_escalation_attempt=event.is_malicious,
            code_injection_detected=event.is_malicious,
        )
        for event in generate_events(60, 16, seed=seed)
    ]


@pytest.mark.integration
def test_imported_telemetry_becomes_a_decision_by_a_new_model(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first, second = recorded("first", 1), recorded("second", 2)
    steps = {"GRADIENT_STEPS": "100", "INCREMENTAL_STEPS": "100", "VALIDATION_STEPS": "40"}
    little = {
        f"DRL_LEARNING__{name}": count for name, count in (steps | {"EPISODES": "20"}).items()
    }
    with freshness.site(home, **little) as running:
        imported = running.import_(freshness.write(tmp_path / "first.jsonl", first))
        assert (imported["events"], imported["dead_letters"]) == (len(first), 0)
        known = running.release()
        _, decision = running.decision_by(known.model_version, first[0])
        assert decision["model_version"] == known.model_version
        assert known.dagster_run_id
        assert known.parent_version is None

        running.import_(freshness.write(tmp_path / "second.jsonl", second))
        manifest = running.release(after=known.sequence)
        decided, decision = running.decision_by(manifest.model_version, second[0])
        assert decision["sequence"] == manifest.sequence > known.sequence
        assert manifest.parent_version == known.model_version
        assert manifest.batch_partitions == LandingZone(running.settings.landing_path).keys()
        assert set(known.batch_partitions) < set(manifest.batch_partitions)

        seconds = freshness.stages(running, manifest, decided)
        freshness.report(seconds)
        assert list(seconds) == [f"{one} -> {two}" for one, two in itertools.pairwise(STAGES)]
        assert all(taken >= 0 for taken in seconds.values())
    assert running.process.returncode == 130
    assert freshness.left_running(home) == []
