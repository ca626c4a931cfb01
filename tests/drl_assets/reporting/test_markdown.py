"""The report of an evaluation holds the table, the pictures and what reproduces it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drl_assets.learning.data.episodes import Episodes
from drl_assets.learning.evaluation import baselines, evaluate, off_policy, policies
from drl_assets.learning.learners.networks import seeded_network
from drl_assets.reporting import markdown
from tests.drl_assets.learning.evaluation.test_evaluate import make

Q_VALUES = policies.network_q(seeded_network([16], 0))
PICTURES = {
    "containment_against_interruption",
    "cost_curve",
    "containment_over_time",
    "calibration",
    "per_attack_type",
    "timeline",
}


@pytest.fixture(scope="module")
def result(episodes: Episodes) -> dict[str, Any]:
    rule = {"threshold_rule": baselines._threshold_rule(_rows(episodes))}
    return evaluate.evaluate_policies(policies.greedy(Q_VALUES), episodes, rule)


def _rows(episodes: Episodes) -> dict[str, Any]:
    from drl_assets.learning.data import trajectories

    return baselines._monitored(trajectories.rows_of(episodes, np.random.default_rng(0)))


def test_the_report_has_tables_pictures_and_what_reproduces_it(
    tmp_path: Path, episodes: Episodes, result: dict[str, Any]
) -> None:
    about = {"model_version": "v7", "command": "drl evaluate --seed 3", "commit": "c0ffee"}
    path = markdown.write(tmp_path / "new", result, Q_VALUES, episodes, about)
    text = path.read_text()
    for told in (*about.values(), "threshold_rule", "clairvoyant", episodes.session[0]):
        assert told in text
    assert {one.stem for one in path.parent.glob("*.png")} == PICTURES
    assert all(f"({name}.png)" in text for name in PICTURES)
    assert all(one.read_bytes()[:4] == b"\x89PNG" for one in path.parent.glob("*.png"))


@pytest.mark.parametrize("kinds", ["m", "b", "mm", "bb", "mb"])
def test_a_report_can_be_written_of_any_episodes(tmp_path: Path, kinds: str) -> None:
    episodes = make(kinds, windows=2)
    table = evaluate.evaluate_policies(policies.greedy(Q_VALUES), episodes, {})
    json.dumps(table, allow_nan=False)
    path = markdown.write(tmp_path, table, Q_VALUES, episodes, {"model_version": "v"})
    assert "nan" not in path.read_text()


def test_off_policy_estimates_are_told_or_said_not_to_be_identifiable() -> None:
    nothing = off_policy.estimates(
        off_policy.Log(*(np.empty(0, dtype=np.int64) for _ in range(4)), q=np.empty((0, 5))), []
    )
    assert "nothing can be estimated" in markdown.off_policy(nothing)
    log = off_policy.Log(
        starts=np.arange(4),
        action=np.zeros(4, dtype=np.int64),
        propensity=np.full(4, 0.5),
        reward=np.array([-1.0, 0.0, -1.0, 0.0]),
        q=np.tile([0.0, 1.0, 0.0, 0.0, 0.0], (4, 1)),
    )
    told = markdown.off_policy(off_policy.estimates(log, ["a", "a", "b", "b"]))
    assert "| increase_isolation | 0 | 4 | 0.000 | not identifiable |" in told


def test_a_cell_shows_no_negative_zero_and_breaks_no_table() -> None:
    table = markdown.markdown_table(("a", "b"), [(-0.0001, "x|y\nz"), (None, 2)])
    assert table.splitlines()[2:] == ["| 0.000 | x\\|y z |", "| – | 2 |"]  # noqa: RUF001
