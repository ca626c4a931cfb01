"""Regret on generators of known optimum: its bound, and what is paid for once."""

from pathlib import Path

import msgspec
import pytest

from drl_assets.learning.gates import oracle_regret
from drl_assets.learning.gates.oracle_mdps import G1, G2
from drl_assets.learning.learners.fitted_q import FittedConfig
from drl_core.settings import Gates

BOUNDS = Gates()


def test_regret_beyond_its_bound_on_one_generator_refuses() -> None:
    assert oracle_regret.regret_within_bounds({"g1": 0.05, "g2": 0.1}, BOUNDS).passed
    verdict = oracle_regret.regret_within_bounds({"g1": 0.05, "g2": 0.11}, BOUNDS)
    assert (verdict.passed, verdict.severity) == (False, "ERROR")
    assert "g2 11.0%" in verdict.reason


def test_the_learner_tried_is_the_challengers_but_for_what_its_recordings_asked_for() -> None:
    config = oracle_regret.learner(
        {"learning_rate": 0.5, "input_noise": 9.0, "gradient_steps": 7, "validated": True}
    )
    assert config.learning_rate == 0.5
    assert config.input_noise == FittedConfig().input_noise
    assert config.gradient_steps == oracle_regret.STEPS


def test_a_learner_that_does_not_learn_is_found_out_and_paid_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle_regret, "TRAJECTORIES", 200)
    still = oracle_regret.learner({"learning_rate": 1e-9})
    found = oracle_regret.regrets(still, [8], tmp_path)
    assert found.keys() == {G1.name, G2.name}
    assert not oracle_regret.regret_within_bounds(found, BOUNDS).passed
    kept = list(tmp_path.iterdir())
    assert msgspec.json.decode(kept[0].read_bytes()) == found
    stamp = kept[0].stat().st_mtime_ns
    assert oracle_regret.regrets(still, [8], tmp_path) == found
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [stamp]
    other = oracle_regret.regrets(still, [4], tmp_path)
    assert other != found
